"""The API's own papers: its OpenAPI document, two pages that show it without any help from the internet, its client."""

from functools import lru_cache
from importlib.resources import files
from typing import Any, cast

import msgspec
from litestar import Controller, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

_CLIENT = files("examples") / "typed_client.py"
_ASSETS = files("drf_spectacular_sidecar") / "static" / "drf_spectacular_sidecar"
_SERVED = {
    "swagger-ui.css": ("swagger-ui-dist/swagger-ui.css", "text/css"),
    "swagger-ui-bundle.js": ("swagger-ui-dist/swagger-ui-bundle.js", "text/javascript"),
    "redoc.js": ("redoc/bundles/redoc.standalone.js", "text/javascript"),
    "favicon.png": ("swagger-ui-dist/favicon-32x32.png", "image/png"),
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SaaS LiteLLM API</title>
<link rel="icon" type="image/png" href="/docs/assets/favicon.png">
{head}
</head>
<body>{body}</body>
</html>
"""
_SWAGGER = _PAGE.format(
    head='<link rel="stylesheet" href="/docs/assets/swagger-ui.css">',
    body="""<div id="page"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "/openapi.json", dom_id: "#page", deepLinking: true, persistAuthorization: true,
                 docExpansion: "list", defaultModelsExpandDepth: 0, validatorUrl: null});
</script>""",
)
_REDOC = _PAGE.format(
    head="<style>body { margin: 0 }</style>",
    body="""<div id="page"></div>
<script src="/docs/assets/redoc.js"></script>
<script>
Redoc.init("/openapi.json", {disableGoogleFont: true}, document.getElementById("page"));
</script>""",
)

# Whatever a page is made of comes from here; Swagger UI and ReDoc write styles, ReDoc searches in a worker of its own.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


class PagesController(Controller):
    tags = ["Documentation"]

    @get("/openapi.json", sync_to_thread=True)
    def openapi(self) -> Response[dict[str, Any]]:
        """This document."""
        return Response(_document(), media_type="application/json")

    @get("/docs", media_type="text/html", sync_to_thread=False)
    def swagger(self) -> Response[str]:
        """This document in Swagger UI, to be tried out."""
        return _page(_SWAGGER)

    @get("/redoc", media_type="text/html", sync_to_thread=False)
    def redoc(self) -> Response[str]:
        """This document in ReDoc, to be read."""
        return _page(_REDOC)

    @get("/examples/typed_client.py", media_type="text/x-python", sync_to_thread=True)
    def typed_client(self) -> Response[bytes]:
        """The source of the typed client."""
        return Response(_CLIENT.read_bytes(), media_type="text/x-python")

    @get("/docs/assets/{name:str}", include_in_schema=False, sync_to_thread=True)
    def asset(self, name: FromPath[str]) -> Response[bytes]:
        if name not in _SERVED:
            raise NotFoundException
        place, media_type = _SERVED[name]
        content = (_ASSETS / place).read_bytes()
        return Response(content, media_type=media_type, headers={"Cache-Control": "public, max-age=86400"})


def _page(content: str) -> Response[str]:
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    from api.app import described  # the application knows its controllers; they include this one

    return cast("dict[str, Any]", msgspec.json.encode(described()))  # ready to be written, once for all
