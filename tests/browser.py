"""A headless Chromium, driven through the DevTools protocol over pipes."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """One tab that reaches 127.0.0.1 alone; `events` has all that the protocol told of it."""

    def __init__(self, profile, width=1280, height=1000):
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def connect():
            # Chromium reads commands at 3 and answers at 4; either may be the other's already.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}",
             "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "about:blank"],
            close_fds=False, preexec_fn=connect, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session, self.events = b"", 0, None, []
        target = next(item["targetId"] for item in self.call("Target.getTargets")["targetInfos"]
                      if item["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target,
                                  flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method, **parameters):
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def told(self, method):
        """Return the parameters of all events of a kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    @property
    def requests(self):
        """The addresses of all that it asked for."""
        return [*(params["request"]["url"] for params in self.told("Network.requestWillBeSent")),
                *(params["url"] for params in self.told("Network.webSocketCreated"))]

    def _next(self):
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], 30)[0], "Chromium does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def value(self, expression):
        """Return what JavaScript makes of an expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                          awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, seconds=60):
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"{expression} is not: {self.value('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def upload(self, path, selector="input[type=file]"):
        """Give a file to the input that a selector finds."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[os.path.abspath(path)], nodeId=node)


@contextlib.contextmanager
def opened(page, profile, before=""):
    """Open a file, after a script; yields its `Browser`."""
    with Browser(profile) as browser:
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        browser.call("Page.navigate", url=page.resolve().as_uri())
        browser.wait("document.readyState === 'complete'")
        yield browser
