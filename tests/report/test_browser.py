"""The report in a real browser, where one is installed: it renders at both widths, and logs nothing to the console."""

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
  const found = {{width: page.documentElement.scrollWidth, charts, height: page.documentElement.scrollHeight}}
  const pre = document.createElement('pre')
  pre.id = 'found'
  pre.textContent = JSON.stringify(found)
  document.body.append(pre)
}}
</script>
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(BROWSER is None, reason='no Chromium here')
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('count', [1, 2])
def test_the_page_fits_a_phone_and_a_desk_and_logs_no_error(tmp_path: Path, width: int, count: int) -> None:
    workdirs = [write_run(tmp_path / f'a-run-with-a-rather-long-name-{number}') for number in range(count)]
    page = report.write_report(workdirs).read_text()
    (tmp_path / 'page.html').write_text(_MEASURE.format(width=width, page=html.escape(page)))
    command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
    command += ['--enable-logging=stderr', '--virtual-time-budget=3000', '--window-size=1400,900', '--dump-dom']
    done = subprocess.run([*command, str(tmp_path / 'page.html')], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'CONSOLE' not in done.stderr, done.stderr
    [found] = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout)
    found = json.loads(html.unescape(found))
    assert found['width'] <= width and found['height'] > 800
    assert found['charts'] and all(100 < chart <= width for chart in found['charts'])
