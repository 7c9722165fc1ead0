"""Tests run offline and on two cores, as on the smallest machine that the course is made for."""
import json, os, sys
from pathlib import Path
import pytest

TESTS = Path(__file__).parent
os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', TOKENIZERS_PARALLELISM='false',
                  NO_PROXY='localhost,127.0.0.1', no_proxy='localhost,127.0.0.1')      # stand-ins of servers are here
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ['OMP_NUM_THREADS'] = '1'   # two workers share the two cores
else: os.environ.setdefault('OMP_NUM_THREADS', '2')
sys.path.insert(0, str(TESTS))

def pytest_collection_modifyitems(config, items):
    """For `make test`, which has two workers: a file stays with one of them (its fixtures are made once),
    each chapter is a piece of its own, and the longest come first."""
    seconds = json.loads((TESTS.parent/'results'/'chapters.json').read_text())
    def piece(item):
        return (getattr(item, 'callspec', None) and item.callspec.id
                if item.originalname == 'test_chapter_runs_top_to_bottom' else item.path.stem)
    if config.pluginmanager.hasplugin('xdist'):
        for item in items: item.add_marker(pytest.mark.xdist_group(piece(item)))
    items.sort(key=lambda item: -seconds.get(piece(item), 90))   # a file of tests takes about 90 s; the sort keeps the order within it

def message(error, call) -> str:
    "The one line of the error that `call` must raise."
    with pytest.raises(error) as caught: call()
    assert '\n' not in str(caught.value), caught.value
    return str(caught.value)
