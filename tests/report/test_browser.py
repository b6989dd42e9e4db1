"""The report renders in a real browser at the widths of a phone and a desktop, without console messages."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bert_jax import report
from tests.support.pages import write_run

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
_MEASURE = """
<iframe id="page" style="width: {width}px; height: 800px; border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const page = document.getElementById('page').contentDocument
  const charts = [...page.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width)
  const measured = {{width: page.documentElement.scrollWidth, charts, height: page.documentElement.scrollHeight}}
  const pre = document.createElement('pre')
  pre.id = 'measured'
  pre.textContent = JSON.stringify(measured)
  document.body.append(pre)
}}
</script>
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(BROWSER is None, reason='Chromium is not installed')
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('num_runs', [1, 2])
def test_page_fits_phone_and_desktop_without_console_messages(tmp_path: Path, width: int, num_runs: int) -> None:
    workdirs = [write_run(tmp_path / f'a-run-with-a-rather-long-name-{i}') for i in range(num_runs)]
    page = report.write_report(workdirs).read_text()
    (tmp_path / 'page.html').write_text(_MEASURE.format(width=width, page=html.escape(page)))
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
    command += ['--enable-logging=stderr', '--virtual-time-budget=3000', '--window-size=1400,900', '--dump-dom']
    done = subprocess.run([*command, str(tmp_path / 'page.html')], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'CONSOLE' not in done.stderr, done.stderr
    [text] = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout)
    measured = json.loads(html.unescape(text))
    assert measured['width'] <= width and measured['height'] > 800
    assert measured['charts'] and all(100 < chart <= width for chart in measured['charts'])
