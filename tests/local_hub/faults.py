"""What goes wrong on the way to a Hub: connections that break, and bytes that change."""

import threading


class Faults:
    """
    Wrap the local Hub's application; set what is to go wrong, for the requests that follow.

    Args:
        cut_uploads, cut_commits, cut_downloads: how many of the next requests lose their connection half way.
        refuse_listings: how many of the next requests for the list of a repository's files are answered by 403.
        corrupt: end of the address of files that are sent with their last byte changed.
        hold_uploads: take half of an upload and then wait until the client is gone.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Let everything go well again."""
        self.cut_uploads = self.cut_commits = self.cut_downloads = self.refuse_listings = 0
        self.corrupt: str | None = None
        self.hold_uploads = False
        self.reached = threading.Event()
        self.seen: list[tuple[str, str]] = []

    def around(self, application):
        """Return the application with the faults in front of it."""

        async def faulty(scope, receive, send):
            if scope["type"] != "http":
                return await application(scope, receive, send)
            method, path = scope["method"], scope["path"]
            self.seen.append((method, path))
            upload = method == "PUT" and path.startswith("/large-files/")
            if upload and self.hold_uploads:
                return await application(scope, self._half(receive), send)
            if upload and self.cut_uploads:
                self.cut_uploads -= 1
                await receive()
                return await self._hang_up(send)
            if method == "POST" and "/commit/" in path and self.cut_commits:
                self.cut_commits -= 1
                return await self._hang_up(send)
            if method == "GET" and self.refuse_listings and "/tree/" in path:
                self.refuse_listings -= 1
                await send({"type": "http.response.start", "status": 403, "headers": []})
                return await send({"type": "http.response.body", "body": b""})
            if method == "GET" and self.cut_downloads and path.endswith((".safetensors", ".parquet")):
                self.cut_downloads -= 1
                return await application(scope, receive, self._cut(send))
            if method == "GET" and self.corrupt and path.endswith(self.corrupt):
                return await application(scope, receive, _corrupted(send))
            return await application(scope, receive, send)

        return faulty

    def _half(self, receive):
        state = {"first": True}

        async def half():
            if state.pop("first", False):
                message = await receive()
                return {**message, "body": message["body"][: len(message["body"]) // 2], "more_body": True}
            self.reached.set()
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message

        return half

    @staticmethod
    async def _hang_up(send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        raise ConnectionError("the connection is cut on purpose")

    @staticmethod
    def _cut(send):
        async def cut(message):
            if message["type"] == "http.response.body":
                half = message["body"][: len(message["body"]) // 2]
                await send({"type": "http.response.body", "body": half, "more_body": True})
                raise ConnectionError("the connection is cut on purpose")
            await send(message)

        return cut


def _corrupted(send):
    async def corrupted(message):
        body = message.get("body", b"")
        if body and not message.get("more_body", False):
            message = {**message, "body": body[:-1] + bytes([body[-1] ^ 1])}
        await send(message)

    return corrupted
