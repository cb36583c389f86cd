"""A headless Chromium, driven by Python's standard library through the DevTools protocol over a pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"]


def find():
    """Returns the path of the browser: the value of CHROMIUM, or the first installed one, or None."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A browser process. `page()` opens a tab."""

    def __init__(self, path):
        self.profile = tempfile.mkdtemp(prefix="evenkeel-page-")
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--mute-audio",
                 "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 f"--user-data-dir={self.profile}", "--remote-debugging-pipe"]

        def pipes():
            # The protocol uses descriptors 3 and 4. The pipes may occupy them, so duplicate the pipes first.
            pair = os.dup(to_browser), os.dup(from_browser)
            for number, end in zip((3, 4), pair):
                os.dup2(end, number, inheritable=True)

        self.process = subprocess.Popen([path, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        preexec_fn=pipes, close_fds=False)
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.rest, self.events = 0, b"", []

    def close(self):
        try:
            self.send("Browser.close")
            self.process.wait(5)
        except Exception:
            self.process.kill()
            self.process.wait()
        os.close(self.write)
        os.close(self.read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method, params=None, session=None, seconds=30):
        """Sends one command and returns its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write, data):]
        until = time.monotonic() + seconds
        while True:
            reply = self.receive(until - time.monotonic())
            if reply is None:
                raise TimeoutError(f"{method}: no answer within {seconds} s")
            if reply.get("id") == self.number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def receive(self, seconds):
        """Returns the next message, or None."""
        until = time.monotonic() + seconds
        while b"\0" not in self.rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                return None
            data = os.read(self.read, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def page(self, url="about:blank", width=1280, height=900, **media):
        return Page(self, url, width, height, **media)


class Page:
    """A tab."""

    def __init__(self, browser, url, width, height, scheme="light", mobile=False, scale=1, motion="no-preference"):
        self.browser = browser
        # Every tab has its own context, so that no tab sees the session storage of another.
        self.context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send("Target.createTarget", {"url": "about:blank", "browserContextId": self.context})
        self.session = browser.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})["sessionId"]
        self.target = target["targetId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.send(f"{domain}.enable")
        self.size(width, height, mobile, scale)
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.send("Emulation.setEmulatedMedia", {"features": features})
        self.send("Page.navigate", {"url": url})

    def size(self, width, height, mobile=False, scale=1):
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.send("Emulation.setDeviceMetricsOverride", metrics)

    def send(self, method, params=None, **more):
        return self.browser.send(method, params, session=self.session, **more)

    def close(self):
        self.browser.send("Target.closeTarget", {"targetId": self.target})
        self.browser.send("Target.disposeBrowserContext", {"browserContextId": self.context})

    def eval(self, expression, seconds=30):
        """Returns the value of a JavaScript expression. Awaits promises."""
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        result = self.send("Runtime.evaluate", params, seconds=seconds)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def wait(self, expression, seconds=20):
        """Waits until an expression is true, and returns its value."""
        until = time.monotonic() + seconds
        while True:
            try:
                value = self.eval(expression)
                if value:
                    return value
            except RuntimeError as error:
                value = error
            if time.monotonic() > until:
                said = [self.text("#error"), *self.complaints()]
                raise AssertionError(f"not within {seconds} s: {expression} (last: {value!r}; the page says {said})")
            time.sleep(0.1)

    def text(self, selector):
        return self.eval(f"document.querySelector({json.dumps(selector)})?.innerText ?? null")

    def click(self, selector):
        """Clicks an element once it has stopped moving and nothing covers it."""
        place = self.eval(f"""(async () => {{
            const [node, again] = [document.querySelector({json.dumps(selector)}), () => new Promise((go) => setTimeout(go, 50))];
            let before = "";
            for (let turn = 0; turn < 100; ++turn) {{
                node.scrollIntoView({{block: "center"}});
                const at = node.getBoundingClientRect();
                const [middle, now] = [[at.x + at.width / 2, at.y + at.height / 2], JSON.stringify(at)];
                if (now === before && node.contains(document.elementFromPoint(...middle))) return middle;
                before = now;
                await again();
            }}
            return null;
        }})()""")
        assert place, f"{selector} does not stay where it can be clicked"
        for kind in ["mousePressed", "mouseReleased"]:
            self.send("Input.dispatchMouseEvent", {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1})

    def key(self, name, shift=False, text=""):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ["keyDown", "keyUp"]:
            params = {"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": codes.get(name, 0), "modifiers": 8 if shift else 0}
            if kind == "keyDown" and (text or name == "Enter"):
                params["text"] = text or "\r"
            self.send("Input.dispatchKeyEvent", params)

    def type(self, text):
        self.send("Input.insertText", {"text": text})

    def picture(self, path, whole=False):
        """Writes a PNG of the window, or of the whole page."""
        params = {"format": "png"}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            params |= {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.send("Page.captureScreenshot", params)["data"]))

    def complaints(self):
        """Returns the errors in the console so far: uncaught errors, refused resources, violated policies."""
        self.eval("0")
        found = []
        for event in self.browser.events:
            params = event.get("params", {})
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found


if __name__ == "__main__":
    sys.exit(find() is None)
