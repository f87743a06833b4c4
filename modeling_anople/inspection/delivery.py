"""
Results on their way out: to a webhook, signed, and to an MQTT broker. Each waits in the journal until it has arrived.

A receiver that is killed, or slow to answer, may get a result twice; the `id` in it, and `X-AnoPLe-Delivery`, are the same.
"""

import contextlib
import hashlib
import hmac
import logging
import os
import threading
import time
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from .journal import Delivery, Journal


logger = logging.getLogger(__name__)

WEBHOOK_SECRET, MQTT_PASSWORD = (
    "ANOPLE_WEBHOOK_SECRET",
    "ANOPLE_MQTT_PASSWORD",
)  # environment: options can be listed by all
SECONDS = 10  # of one attempt
LONGEST_PAUSE = 300
OF_THIS_ONE = {400, 413, 415, 422}  # answers that refuse one result; all others are of the receiver
SIGNATURE, TIMESTAMP, NUMBER = "X-AnoPLe-Signature", "X-AnoPLe-Timestamp", "X-AnoPLe-Delivery"


class Undelivered(Exception):
    """A result did not arrive. `alone`: this one was refused, others may arrive."""

    def __init__(self, reason: str, *, alone: bool = False):
        super().__init__(reason)
        self.alone = alone


class Receiver(Protocol):
    """Somebody who is told each result."""

    name: str  # as the journal calls it
    address: str  # as logs may show it

    def send(self, delivery: Delivery) -> None:
        """Deliver one result, or raise [`Undelivered`]."""

    def close(self) -> None:
        """End what is open."""


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """
    Sign a body as a webhook gets it: `sha256=` and the HMAC-SHA256, in hexadecimal digits, of timestamp, "." and body.

    A receiver computes it from the header `X-AnoPLe-Timestamp` and the body as it came, and compares it with
    `X-AnoPLe-Signature` by `hmac.compare_digest`; it refuses a timestamp (seconds since 1970) of long ago.
    """
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _take_apart(url: str, option: str, schemes: tuple[str, str], advice: str) -> SplitResult:
    """Split an address; a `ValueError`, which shows no more of it than its host, for one that cannot be."""
    shown = option
    with contextlib.suppress(ValueError):  # of brackets, and of a port beyond 65535
        parts = urlsplit(url)
        shown = f"{option} {parts.scheme}://{parts.hostname or ''}"
        if parts.scheme in schemes and parts.hostname and parts.port != 0:
            return parts
    raise ValueError(f"{shown} {advice}")


class Webhook:
    """An address to which each result is posted as JSON."""

    name = "webhook"

    def __init__(self, url: str):
        advice = "is no address: give http(s)://HOST[:PORT]/PATH."
        parts = _take_apart(url, "--webhook", ("http", "https"), advice)
        if not (secret := os.environ.get(WEBHOOK_SECRET)):
            raise ValueError(
                f"--webhook signs what it sends: put a secret that the receiver knows into the environment as {WEBHOOK_SECRET}."
            )
        import httpx2

        self.address = f"{parts.scheme}://{parts.hostname}"  # the rest may be a secret
        try:
            self._url = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"--webhook {self.address} {advice}") from error
        self._secret, self._errors = secret, httpx2.HTTPError
        self._client = httpx2.Client(timeout=SECONDS)

    def send(self, delivery: Delivery) -> None:
        """Post one result; anything but an answer of 2xx is none."""
        body, timestamp = delivery.body.encode(), str(int(time.time()))
        headers = {"Content-Type": "application/json", TIMESTAMP: timestamp, NUMBER: str(delivery.number)}
        headers[SIGNATURE] = sign(self._secret, timestamp, body)
        try:
            status = self._client.post(self._url, content=body, headers=headers).status_code
        except self._errors as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise Undelivered(f"it answered {status}", alone=status in OF_THIS_ONE)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Broker:
    """A topic of an MQTT broker, to which each result is published with quality of service 1."""

    name = "mqtt"

    def __init__(self, url: str):
        advice = "is no topic: give mqtt://[USER@]HOST[:PORT]/TOPIC, or mqtts://."
        parts = _take_apart(url, "--mqtt", ("mqtt", "mqtts"), advice)
        self.address = f"{parts.scheme}://{parts.hostname}"
        topic = unquote(parts.path.lstrip("/"))
        if not topic or {"#", "+"} & {*url}:
            raise ValueError(f"--mqtt {self.address} {advice}")
        if parts.password is not None:
            raise ValueError(
                f"--mqtt {self.address} holds a password, which options show to all: put it into the environment as "
                f"{MQTT_PASSWORD}."
            )
        import paho.mqtt.client as mqtt

        self._mqtt, self._parts, self._topic = mqtt, parts, topic
        self._client: mqtt.Client | None = None
        self._refusal = ""

    def send(self, delivery: Delivery) -> None:
        """Publish one result, and wait for the broker's word that it has it."""
        deadline = time.monotonic() + SECONDS
        try:
            if self._client is None or not self._client.is_connected():
                self._connect(deadline)
            message = self._client.publish(self._topic, delivery.body.strip(), qos=1)
            message.wait_for_publish(max(0.1, deadline - time.monotonic()))
            arrived = message.is_published()
        except (OSError, ValueError, RuntimeError) as error:
            self._disconnect()
            raise Undelivered(f"{type(error).__name__}: {error}") from error
        if not arrived:
            self._disconnect()  # or it would go on trying beside the journal
            raise Undelivered("it did not confirm")

    def _connect(self, deadline: float) -> None:
        self._disconnect()
        parts, is_safe = self._parts, self._parts.scheme == "mqtts"
        # a new one each time: the one before would send on its own what the journal sends again
        self._client = client = self._mqtt.Client(self._mqtt.CallbackAPIVersion.VERSION2)
        if parts.username:
            client.username_pw_set(unquote(parts.username), os.environ.get(MQTT_PASSWORD))
        if is_safe:
            client.tls_set()

        def connected(_client: object, _data: object, _flags: object, reason: object, _properties: object) -> None:
            self._refusal = str(reason) if reason.is_failure else ""

        client.on_connect = connected
        client.connect_timeout = SECONDS / 2
        client.connect(parts.hostname, parts.port or (8883 if is_safe else 1883), keepalive=30)
        client.loop_start()
        while not client.is_connected():
            if self._refusal or time.monotonic() > deadline:
                raise OSError(self._refusal or "no answer")
            time.sleep(0.01)

    def _disconnect(self) -> None:
        client, self._client, self._refusal = self._client, None, ""
        if client is not None:
            with contextlib.suppress(OSError, ValueError):
                client.disconnect()
            client.loop_stop()

    def close(self) -> None:
        """Leave the broker."""
        self._disconnect()


class Courier(threading.Thread):
    """
    Delivers what waits in a journal to one receiver, for as long as it runs; after a failure with longer and longer pauses.

    Where a receiver is not reached, or lets nobody in, nothing else is tried meanwhile. A result that it refuses while it
    takes others is tried again later, too.
    """

    def __init__(self, journal: Journal, receiver: Receiver):
        super().__init__(name=f"courier of {receiver.name}", daemon=True)
        self.journal, self.receiver = journal, receiver
        self._news, self._ended = threading.Event(), threading.Event()
        self._failures, self._refuses = 0, False  # in a row, and whether the last result was refused alone

    def wake(self) -> None:
        """Say that there is something to deliver."""
        self._news.set()

    def end(self, seconds: float) -> None:
        """Deliver what can be delivered within a time, and end."""
        self._ended.set()
        self._news.set()
        self.join(seconds)

    def run(self) -> None:
        """Deliver until the end."""
        try:
            while True:
                self._news.clear()
                pause = self._deliver_due()
                if self._ended.is_set():
                    return
                (self._ended if self._failures else self._news).wait(pause)
        finally:
            with contextlib.suppress(Exception):  # it is over either way
                self.receiver.close()

    def _deliver_due(self) -> float:
        """Deliver all that is due; return the seconds to wait for."""
        while True:
            try:
                if not self._deliver_next():
                    return 1.0
            except Exception as error:  # also of the journal, on a full disk; nothing is lost, as nothing was removed
                return self._pause_after(error)
            if self._failures:
                logger.warning("%s is reached again.", self.receiver.address)
                self._failures = 0

    def _deliver_next(self) -> bool:
        """Deliver what has been due for longest, or put it off where it alone was refused; say whether there was any."""
        delivery = self.journal.next_delivery(self.receiver.name)
        if delivery is None:
            return False
        try:
            self.receiver.send(delivery)
        except Undelivered as failure:
            if not failure.alone:
                raise
            self.journal.postpone(delivery, min(LONGEST_PAUSE, 2.0 ** min(delivery.attempts + 2, 12)))
            if not self._refuses:
                logger.warning(
                    "%s refuses results (%s): they are kept, and sent again.", self.receiver.address, failure
                )
            self._refuses = True
        else:
            self.journal.delivered(delivery)
            self._refuses = False
        return True

    def _pause_after(self, failure: Exception) -> float:
        if not self._failures:
            reason = failure if isinstance(failure, Undelivered) else f"{type(failure).__name__}: {failure}"
            logger.warning("%s is not reached (%s): results are kept until it is.", self.receiver.address, reason)
        self._failures += 1
        return min(LONGEST_PAUSE, 0.5 * 2.0 ** min(self._failures, 12))


__all__ = ["MQTT_PASSWORD", "WEBHOOK_SECRET", "Broker", "Courier", "Receiver", "Undelivered", "Webhook", "sign"]
