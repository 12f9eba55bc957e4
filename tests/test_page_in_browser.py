"""The report in a real browser: no error, nothing fetched, every picture there, tables that sort, no wider than a phone."""

import asyncio
import json
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

from pipeline.report import page
from tests.test_report import CARD, RESULTS, sheet

aiohttp = pytest.importorskip("aiohttp")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page was not opened in a browser"),
]

NETWORKS = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[0].textContent)"
LOSSES = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => +row.cells[{}].dataset.value)"


@contextmanager
def browser(folder):
    """A headless Chromium; the port at which it can be talked to."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    process = subprocess.Popen([CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, until = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port.exists() and port.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < until, "the browser did not start"
            time.sleep(0.1)
        yield int(port.read_text().splitlines()[0])
    finally:
        process.terminate()
        process.wait(30)


class Tab:
    """One tab, by the DevTools protocol; remembers every event."""

    def __init__(self, socket):
        self.socket, self.sent, self.events = socket, 0, []

    async def call(self, method, **params):
        self.sent += 1
        await self.socket.send_json({"id": self.sent, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json(timeout=60)
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def value(self, expression):
        done = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def open(self, address):
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)
        loaded = (
            "new Promise(done => document.readyState === 'complete' ? done(true) : addEventListener('load', () => done(true)))"
        )
        assert await self.value(loaded)


async def look(port, address):
    """What a person would see: facts by name."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            target = json.loads(await answer.text())["webSocketDebuggerUrl"]
        async with session.ws_connect(target, max_msg_size=0) as socket:
            tab = Tab(socket)
            await tab.open(address)
            seen = {"first": await tab.value(NETWORKS)}
            seen["pictures"] = await tab.value("[...document.images].map(each => each.complete && each.naturalWidth > 0)")
            headings = await tab.value("[...document.querySelectorAll('table.sortable th')].map(each => each.textContent)")
            loss = headings.index("test accuracy, %")
            for name in ("once", "twice"):
                await tab.value(f"document.querySelectorAll('table.sortable th button')[{loss}].click()")
                seen[name] = await tab.value(LOSSES.format(loss))
            await tab.value("document.querySelectorAll('table.sortable th button')[0].click()")
            seen["by name"] = await tab.value(NETWORKS)
            await tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
            seen["width"] = await tab.value("document.documentElement.scrollWidth")
            return seen | {"events": tab.events}


def test_the_page_in_a_browser(tmp_path):
    (tmp_path / "index.html").write_text(page.render(RESULTS, CARD, sheet()))
    with browser(tmp_path / "profile") as port:
        seen = asyncio.run(look(port, (tmp_path / "index.html").as_uri()))
    names = [each["method"] for each in seen["events"]]
    assert "Runtime.exceptionThrown" not in names and "Log.entryAdded" not in names and "Runtime.consoleAPICalled" not in names
    asked = [each["params"]["request"]["url"] for each in seen["events"] if each["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)
    assert len(seen["pictures"]) == 3 and all(seen["pictures"])
    assert seen["once"] == sorted(seen["once"], reverse=True) and seen["twice"] == sorted(seen["once"])
    assert seen["by name"] == sorted(seen["first"], reverse=True)
    assert seen["width"] <= 390
