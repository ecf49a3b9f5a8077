"""The least that a Litestar application can do with the same request: parse the body, answer the same bytes."""

import msgspec
from litestar import Litestar, Response, post
from litestar.params import JSONBody


class JobBody(msgspec.Struct):
    team_id: str
    job_type: str


ANSWER = b'{"job_id":"550e8400-e29b-41d4-a716-446655440000","team_id":"t","status":"pending"}' + b" " * 400


@post("/api/jobs/create", status_code=200, sync_to_thread=False)
def create(data: JSONBody[JobBody]) -> Response[bytes]:
    return Response(ANSWER, media_type="application/json")


app = Litestar([create], openapi_config=None, logging_config=None)
