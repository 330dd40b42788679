"""A headless Chromium that tests can type into, over its debugging pipe: keys are real, as from a keyboard."""

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from itertools import count

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
CODES = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowDown": 40}


class Tab:
    """One page; ``send`` is a command of the Chrome DevTools protocol."""

    def __init__(self, write, read):
        self._write, self._read, self._ids, self._session = write, read, count(1), {}

    def open(self, address, width=1400):
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Page.enable")
        self.send("Page.navigate", url=address)
        self._wait(lambda message: message.get("method") == "Page.loadEventFired")
        self.send("Page.bringToFront")

    def send(self, method, **parameters):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        answer = self._wait(lambda message: message.get("id") == number)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def value(self, script):
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """Press and release a key."""
        words = {"key": key, "code": key, "windowsVirtualKeyCode": CODES[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **words, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **words)

    def _wait(self, wanted):
        while True:
            letters = bytearray()
            while (letter := self._read.read(1)) != b"\0":
                assert letter, "Chromium has ended"
                letters += letter
            message = json.loads(letters)
            if wanted(message):
                return message


@contextmanager
def browser(profile):
    """A browser that ends with the block.

    Args:
        profile: a folder for its files.
    """
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    words = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
    shell = f'exec "$@" 3<&{to_read} 4>&{from_write}'  # Chromium listens on file 3 and answers on file 4
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *words], pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL
    )
    os.close(to_read)
    os.close(from_write)
    with os.fdopen(to_write, "wb") as write, os.fdopen(from_read, "rb") as read:
        try:
            yield Tab(write, read)
        finally:
            process.kill()
            process.wait()
