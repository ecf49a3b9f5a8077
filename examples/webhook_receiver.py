"""Be told of what happens to jobs, and believe only what is signed.

Register once and keep the secret, which is shown this once:

    curl -X POST $API_URL/api/webhooks/register -H "Authorization: Bearer $VIRTUAL_KEY" \\
        -d '{"team_id": "acme-corp", "webhook_url": "https://...", "events": ["job.completed", "job.failed"]}'
    WEBHOOK_SECRET=whsec_... PORT=9000 python -m examples.webhook_receiver

Answers soon and works later: whoever takes longer than 15 seconds is told again. The same message may come twice, so
those that were seen are remembered; here in memory, in earnest in a database.
"""

import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

seen: set[str] = set()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            Webhook(os.environ["WEBHOOK_SECRET"]).verify(body, dict(self.headers.items()))
        except WebhookVerificationError:
            self.answer(401)
            return
        self.answer(204)
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            happened = json.loads(body)
            print(f"{happened['event']}: job {happened['job_id']}, {json.dumps(happened['data'])}", flush=True)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's word
        """Says nothing of requests: what matters is printed."""


def main() -> None:
    with HTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver) as server:
        print(f"listening on port {server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
