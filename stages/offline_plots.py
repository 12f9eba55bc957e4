"""Set-up, no stage: the page that `dvc plots show` fills, with Vega inside it, so that plots open without a network.

`make` runs it after the installation; .dvc/config.local (never committed) then names the page.
"""

import subprocess
import sys
from pathlib import Path

PAGE = Path(".dvc/tmp/offline.html")  # in .dvc/config.local relative to .dvc
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<script>(() => {VEGA})();</script>
<style>body { font-family: sans-serif; } table { border-spacing: 15px; }</style>
</head>
<body>{plot_divs}</body>
</html>
"""


def main() -> None:
    import vl_convert

    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(TEMPLATE.replace("VEGA", "{" + vl_convert.javascript_bundle(vl_version="5.21") + "}"))
    name = str(PAGE.relative_to(".dvc"))
    subprocess.run([sys.executable, "-m", "dvc", "config", "--local", "plots.html_template", name], check=True)


if __name__ == "__main__":
    main()
