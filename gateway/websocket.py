"""One WebSocket connection on uvicorn: what a client's frames must keep to, and how it ends. Knows no route.

uvicorn's protocol pings every 20 seconds and hangs up on whoever does not answer; a message larger than a body may be
ends the connection with 1009. `SocketProtocol` adds: a reader who stalls holds no memory, a last word arrives before
the connection is cut, and a stop leaves it to the application to end what it answers.
"""

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

_CLOSE_SECONDS = 2.0  # for the client to answer our close
_MOST_FRAGMENTS = 1024  # of one message


class SocketProtocol(WebSocketsSansIOProtocol):
    def __init__(self, config: uvicorn.Config, *arguments: object, **keywords: object) -> None:
        super().__init__(config, *arguments, **keywords)  # type: ignore[arg-type]
        self.close_timeout = _CLOSE_SECONDS

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # the request came whole, so its parser has refused it
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def shutdown(self) -> None:
        """Called by uvicorn when it stops: nothing. The application says goodbye when it has answered."""

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # answers that nobody reads would pile up
            self.conn.data_to_send()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= _MOST_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
        else:
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """What is no WebSocket, or too large: say so, and read on for a moment. To cut at once would reset the
        connection, and the reason be lost."""
        if self.close_sent:
            return
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():  # to close would wait for the reader who stalls
            self.transport.abort()

    async def send(self, message: object) -> None:
        await self.writable.wait()
        if self.close_sent and self.handshake_complete:
            raise ClientDisconnected
        await super().send(message)  # type: ignore[arg-type]
