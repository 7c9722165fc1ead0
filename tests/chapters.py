"""Execute chapters top to bottom and keep their outputs: `python tests/chapters.py 05 07` (all chapters when none is named).

Cells marked `#| slow` or `#| gpu` keep the output they have, unless `--slow` is given. `--check` runs without writing,
which is what the tests do; it fails with the chapter and the cell that broke, and with the minutes a chapter may take.
"""
import argparse, json, os, re, sys, tempfile, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config
from vap_diffusion.datasets import write_json

ROOT = Path(__file__).resolve().parent.parent
WIDGET = re.compile(r'interactive\(|[^\n]*\d+%\|')   # what a slider or a progress bar leaves where there is no kernel
KEPT = re.compile(r'^#\|\s*(slow|gpu|eval:\s*false)', re.M)

def number(path) -> str:
    "Of a chapter: 04 or 04b. As texts they are in reading order."
    return path.stem.partition('_')[0]

def chapters(names):
    "The notebooks with these numbers (04 is not 04b), or whose file name starts with one of `names`, in reading order."
    every = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
    numbers = [number(p) for p in every]
    return [p for p in every if not names or any(number(p) == n if n in numbers else p.name.startswith(n) for n in names)]

SLIDERS = """
import ipywidgets
from IPython.utils.capture import capture_output
def interact(f=None, **controls): \
# once, with what the sliders stand at: an error in f is seen, and no widget waits for a page that is not there
    if f is None: return lambda f: interact(f, **controls)
    stand = {c._kwarg: c.value for c in ipywidgets.interactive(f, **controls).children if hasattr(c, '_kwarg')}
    with capture_output(): f(**stand)
    return f
ipywidgets.interact = interact
"""

class Chapter(NotebookClient):
    "A notebook client that leaves the cells marked slow as they are."
    slow = False
    async def async_execute_cell(self, cell, cell_index, **kw):
        if cell.cell_type == 'code' and KEPT.search(cell.source) and not self.slow: return cell
        return await super().async_execute_cell(cell, cell_index, **kw)

def clean(nb):
    "Drop what changes from run to run and says nothing: ids of executions, timestamps, widget state, progress bars."
    nb.metadata = {k: v for k, v in nb.metadata.items() if k == 'kernelspec'}
    if 'kernelspec' in nb.metadata:
        nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    for cell in nb.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in ('tags', 'jupyter')}
        if cell.cell_type != 'code': continue
        cell.execution_count = None
        cell.outputs = [o for o in cell.outputs if not (o.output_type == 'stream' and o.name == 'stderr')
                        and not WIDGET.match(o.get('data', {}).get('text/plain', ''))]
        for o in cell.outputs:
            if 'execution_count' in o: o['execution_count'] = None
            for k, v in o.get('data', {}).items():
                if k == 'text/plain': o['data'][k] = re.sub(r' at 0x[0-9a-f]+', '', v)
    return nb

def execute(path, slow=False, write=True, tries=2, minutes=5):
    "Run one chapter; returns its seconds. A kernel that died or whose answer got lost is tried once more."
    nb, start = nbformat.read(path, as_version=4), time.time()
    nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    local = Config({'KernelManager': dict(transport='ipc', ip=f'{tempfile.mkdtemp()}/kernel')})   # sockets on disk: no ports to race for
    client = Chapter(nb, timeout=3600 if slow else 54*minutes, startup_timeout=600, resources={'metadata': {'path': str(path.parent)}},
                     config=local)
    client.slow = slow
    nb.cells.insert(0, nbformat.v4.new_code_cell(SLIDERS))
    try: client.execute()
    except (CellTimeoutError, DeadKernelError, AssertionError): # a cell's own failure is a CellExecutionError, and is not tried again
        if tries == 1: raise
        return execute(path, slow, write, tries - 1, minutes)
    nb.cells.pop(0)
    if write: nbformat.write(clean(nb), path)
    return time.time() - start

def note_seconds(path, seconds):
    "Keep how long a chapter took: README's table is drawn from results/chapters.json."
    file = ROOT/'results'/'chapters.json'
    found = json.loads(file.read_text()) if file.exists() else {}
    write_json(file, dict(sorted((found | {path.stem: round(seconds)}).items())))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('names', nargs='*', help='chapter numbers or the start of their file names')
    ap.add_argument('--slow', action='store_true', help='run the cells marked slow, too')
    ap.add_argument('--check', action='store_true', help='run, but write nothing')
    ap.add_argument('--minutes', type=float, default=5, help='a chapter that takes longer fails')
    a = ap.parse_args()
    os.environ.setdefault('PYTHONWARNINGS', 'ignore')
    failed = []
    for p in chapters(a.names):
        try: seconds = execute(p, a.slow, write=not a.check)
        except (CellExecutionError, CellTimeoutError) as e:
            print(f'{p.name}: failed\n{e}', flush=True); failed.append(p.name); continue
        if not (a.check or a.slow): note_seconds(p, seconds)
        late = not a.slow and seconds > 60*a.minutes
        print(f'{p.name}: {seconds:.0f} s' + (f', more than {a.minutes:g} minutes' if late else ''), flush=True)
        if late: failed.append(p.name)
    if failed: sys.exit(f'chapters that failed: {", ".join(failed)}')

if __name__ == '__main__': main()
