"""Every result reaches a webhook, signed, and a broker, however long they were away; nothing is lost meanwhile."""

import hmac
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from modeling_anople.inspection.delivery import WEBHOOK_SECRET, Broker, Courier, Undelivered, Webhook, sign
from modeling_anople.inspection.journal import JOURNAL, Journal

from .conftest import wait_until


class Inbox:
    """A webhook on this machine that keeps what it was sent, and answers what a test says."""

    def __init__(self, port: int = 0):
        self.got: list[tuple[dict, bytes]] = []
        self.status = 200
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if inbox.status == 200:
                    inbox.got.append((dict(self.headers), body))
                self.send_response(inbox.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def numbers(self) -> list[int]:
        return [json.loads(body)["number"] for _, body in self.got]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def inbox(monkeypatch):
    monkeypatch.setenv(WEBHOOK_SECRET, "between us")
    found = Inbox()
    yield found
    found.close()


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / JOURNAL)


def tell(journal: Journal, place: str, *numbers: int) -> None:
    for number in numbers:
        journal.tell(json.dumps({"number": number}) + "\n", [place])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_what_is_posted_can_be_proved(journal, inbox):
    courier = Courier(journal, Webhook(f"http://127.0.0.1:{inbox.port}/line?token=secret"))
    tell(journal, "webhook", 1, 2)
    courier.start()
    courier.end(10)
    assert inbox.numbers == [1, 2] and not journal.waiting()
    for headers, body in inbox.got:
        signature = sign("between us", headers["X-AnoPLe-Timestamp"], body)
        assert hmac.compare_digest(signature, headers["X-AnoPLe-Signature"]) and len(signature) == 7 + 64
        assert abs(int(headers["X-AnoPLe-Timestamp"]) - time.time()) < 60
    assert sign("another", headers["X-AnoPLe-Timestamp"], body) != signature
    assert len({headers["X-AnoPLe-Delivery"] for headers, _ in inbox.got}) == 2


def test_a_webhook_that_was_away_gets_all_of_it_later(journal, inbox, caplog):
    inbox.status = 503
    tell(journal, "webhook", 1, 2)
    courier = Courier(journal, Webhook(f"http://127.0.0.1:{inbox.port}/?token=secret"))
    courier.start()
    wait_until(lambda: "is not reached (it answered 503)" in caplog.text)
    courier.end(10)
    assert journal.waiting() == {"webhook": 2} and "token" not in caplog.text
    inbox.close()
    journal.close()
    again = Journal(journal.path)  # of another process, a restart later
    tell(again, "webhook", 3)
    courier = Courier(again, Webhook(f"http://127.0.0.1:{inbox.port}/"))
    courier.start()
    wait_until(lambda: caplog.text.count("is not reached") == 2)
    back = Inbox(inbox.port)
    wait_until(lambda: len(back.got) == 3)
    courier.end(10)
    back.close()
    assert back.numbers == [1, 2, 3] and not again.waiting()


@pytest.mark.parametrize(("status", "refused"), [(400, 2), (422, 2), (401, 0), (404, 0), (429, 0)])
def test_results_that_are_refused_wait_alone_and_other_answers_stop_all(journal, inbox, caplog, status, refused):
    tell(journal, "webhook", 1, 2)
    courier = Courier(journal, Webhook(f"http://127.0.0.1:{inbox.port}/"))
    inbox.status = status
    courier._deliver_due()
    assert len(caplog.records) == 1  # not one for each result
    inbox.status = 200
    tell(journal, "webhook", 3)
    courier._deliver_due()
    assert inbox.numbers == [1, 2, 3][refused:] and sum(journal.waiting().values()) == refused


def test_a_courier_outlives_whatever_happens(journal, monkeypatch, caplog):
    """A library raises what nobody foresaw, and the disk is full when a result is to be put off."""

    class Odd:
        name, address = "webhook", "http://odd"

        def send(self, delivery) -> None:
            raise Undelivered("it answered 400", alone=True) if delivery.attempts else TypeError("odd")

        def close(self) -> None:
            pass

    tell(journal, "webhook", 1)
    courier = Courier(journal, Odd())
    assert courier._deliver_due() == 1.0 and "http://odd is not reached (TypeError: odd)" in caplog.text
    journal.postpone(journal.next_delivery("webhook"), 0)

    def postpone(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(journal, "postpone", postpone)
    assert courier._deliver_due() == 2.0 and journal.waiting() == {"webhook": 1}


@pytest.mark.parametrize(
    ("kind", "url", "message"),
    [
        (Webhook, "ftp://host/x", "is no address"),
        (Webhook, "http:///x", "is no address"),
        (Broker, "mqtt://host", "is no topic"),
        (Broker, "mqtt://host/a/#", "is no topic"),
        (Broker, "http://host/a", "is no topic"),
        (Webhook, "http://host:99999/x", "--webhook http://host is no address"),
        (Webhook, "http://host/\x01", "--webhook http://host is no address"),
        (Webhook, "http://[::1/x", "--webhook is no address"),
        (Broker, "mqtt://host:port/a", "--mqtt mqtt://host is no topic"),
        (Broker, "mqtt://me:secret@host/a", "--mqtt mqtt://host holds a password.* as ANOPLE_MQTT_PASSWORD"),
    ],
)
def test_addresses_that_cannot_be_are_refused(kind, url, message, monkeypatch):
    monkeypatch.setenv(WEBHOOK_SECRET, "between us")
    with pytest.raises(ValueError, match=message):
        kind(url)


def test_nothing_is_sent_unsigned(monkeypatch):
    monkeypatch.delenv(WEBHOOK_SECRET, raising=False)
    with pytest.raises(ValueError, match=f"put a secret .* into the environment as {WEBHOOK_SECRET}"):
        Webhook("https://example.com/")


MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class RealBroker:
    """A mosquitto on this machine, and somebody who listens to it."""

    def __init__(self, port: int, folder: Path):
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", encoding="utf-8")
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        import paho.mqtt.client as mqtt

        self.got: list[int] = []
        self.listener = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        subscribed = threading.Event()
        self.listener.on_message = lambda *given: self.got.append(json.loads(given[-1].payload)["number"])
        self.listener.on_subscribe = lambda *_: subscribed.set()

        def is_up() -> bool:
            try:
                self.listener.connect("127.0.0.1", port)
            except OSError:
                return False
            return True

        wait_until(is_up)
        self.listener.loop_start()
        self.listener.subscribe("plant/line 1", qos=1)
        assert subscribed.wait(10)

    def close(self) -> None:
        self.listener.disconnect()
        self.listener.loop_stop()
        self.process.terminate()
        self.process.wait(10)


@pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto: apt-get install mosquitto")
def test_a_broker_gets_each_result_also_after_it_was_gone(journal, tmp_path, caplog):
    pytest.importorskip("paho.mqtt.client")
    port = free_port()
    tell(journal, "mqtt", 1, 2)
    courier = Courier(journal, Broker(f"mqtt://127.0.0.1:{port}/plant/line%201"))
    courier.start()  # before there is a broker
    wait_until(lambda: "is not reached" in caplog.text)
    broker = RealBroker(port, tmp_path)
    wait_until(lambda: broker.got == [1, 2])
    broker.close()
    tell(journal, "mqtt", 3)
    courier.wake()
    wait_until(lambda: caplog.text.count("is not reached") == 2)
    broker = RealBroker(port, tmp_path)
    wait_until(lambda: 3 in broker.got)
    courier.end(10)
    broker.close()
    assert not journal.waiting() and 1 not in broker.got and 2 not in broker.got
