"""Pages in a headless Chromium: what a script finds there, without a driver or a library.

The script is put at the end of the page; what it returns is written into the page, and Chromium
prints the page as it then is.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Without these a browser looks for the network, and as root it wants no sandbox.
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--force-color-profile=srgb", "--virtual-time-budget=4000"),
)
DARK = "--blink-settings=preferredColorScheme=0"
_ERRORS = """<script>
window.errors = [];
addEventListener("error", (event) => errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (e) => errors.push("CSP: " + e.violatedDirective));
</script>"""


def _browse(page: Path, *flags: str) -> str:
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    return done.stdout


def result(folder: Path, page: str, script: str, *flags: str) -> Any:
    """Return what the body of a function gives that runs in a page, and the page's errors."""
    ran = f"""<script>
    const outcome = document.createElement("pre");
    outcome.id = "outcome";
    let found;
    try {{ found = (() => {{ {script} }})(); }} catch (error) {{ errors.push(String(error)); }}
    outcome.textContent = JSON.stringify([found, errors]);
    document.body.append(outcome);
    </script>"""
    page = page.replace("<head>", f"<head>{_ERRORS}", 1).replace("</body>", f"{ran}</body>", 1)
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    dom = _browse(path, "--dump-dom", *flags)
    match = re.search(r'<pre id="outcome">(.*?)</pre>', dom, re.DOTALL)
    assert match, dom[:2000]
    found, errors = json.loads(html.unescape(match[1]))
    assert errors == []
    return found


def screenshot(page: Path, image: Path, width: int = 1320, height: int = 2400, *flags: str) -> None:
    """Take a picture of a page."""
    _browse(page, f"--screenshot={image}", f"--window-size={width},{height}", *flags)
