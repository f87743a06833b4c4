"""Nothing from elsewhere: the page may load from this server alone, whatever the libraries in it would like to."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


POLICY = "; ".join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self' data: blob:",
        "form-action 'self'",
        "base-uri 'self'",
    )
)


class Isolation:
    """Send the content security policy with every answer; browsers then ask no other host for anything."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, with one more header."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)
