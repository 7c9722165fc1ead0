"""Kill `describe` at random moments with kill -9, run it again each time, and compare the end with an undisturbed run.

`python tests/kills.py` (100 kills for each engine; `--kills 5` for a taste, `--engine threads` for one). The threads ask a
stand-in model that takes its time; the processes measure. Fails when a line is lost, written twice, or different, or when an image
whose line was finished is asked about again."""
import argparse, json, os, random, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path

class Steady:
    "A stand-in for a model behind a server: waits, then says something that depends on the question and image alone."
    name = 'steady'
    def __init__(self, seconds=0., concurrency=1, dies_at=None, log=None):
        self.seconds, self.concurrency, self.dies_at, self.log, self.n, self.now, self.most, self.lock, self.answered_last = seconds, concurrency, dies_at, log, 0, 0, 0, threading.Lock(), set()
    def chat(self, messages):
        import numpy as np
        images = [hash_of(np.asarray(p['image'])) for m in messages for p in m['content'] if p['type'] == 'image']
        with self.lock:
            self.n += 1; self.now += 1; self.most = max(self.most, self.now); dead = self.dies_at and self.n > self.dies_at
        try:
            if dead: raise ConnectionError('the server is gone; the same command goes on')
            time.sleep(self.seconds)
        finally:
            with self.lock: self.now -= 1
        if len(messages) > 1: self.answered_last.add(images[0])
        if self.log and images: os.write(self.log, (images[0] + '\n').encode())
        return f'A lesion of kind {images[0] if images else "any"} in {len(messages)} turns.'

def hash_of(image):
    import hashlib
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]

def describe(work, engine, asked):
    "What one process does."
    from vap_diffusion.vaps import write_descriptions
    log = os.open(asked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write_descriptions(work, Steady(.02, 8, log=log) if engine == 'threads' else None, progress=False)

def start(work, engine, asked):
    return subprocess.Popen([sys.executable, '-W', 'ignore', __file__, '--describe', str(work), '--engine', engine, '--asked', str(asked)], env=os.environ | dict(OMP_NUM_THREADS='1'))

def size(path): return path.stat().st_size if path.exists() else 0

def check(root, kills, engine, images, seed=0):
    "Returns seconds. AssertionError when anything was lost, doubled, changed or asked again."
    from vap_diffusion.datasets import load_image, prepare
    from vap_diffusion.phantoms import write_phantoms
    began, root, rng = time.time(), Path(root), random.Random(seed)
    write_phantoms(root/'p', images, size=32, seed=1, progress=False)
    for w in ('calm', 'killed'): table = prepare('phantoms', root/'p', root/w, n=images, size=32, seed=1, progress=False)
    assert start(root/'calm', engine, root/'calm.txt').wait() == 0
    file, killed = root/'killed'/'descriptions.jsonl', 0
    images_of = {f: hash_of(load_image(root/'p'/f)) for f in table.file_name} if engine == 'threads' else {}
    finished = {}                                                             # image -> how often it had been asked about when its line was there
    while killed < kills:
        before, process = size(file), start(root/'killed', engine, root/'killed.txt')
        while process.poll() is None and size(file) <= before: time.sleep(.002)
        time.sleep(rng.uniform(0, .03))
        if process.poll() is not None:                                        # it was finished: take some lines away, so that there is work to be killed at
            assert process.returncode == 0
            kept = file.read_bytes().splitlines(keepends=True); rng.shuffle(kept)
            file.write_bytes(b''.join(kept[:len(kept)//3])); finished.clear()
            continue
        process.send_signal(signal.SIGKILL); process.wait(); killed += 1
        if killed % 10 == 0: print(f'{engine}: {killed} kills, {time.time() - began:.0f} s', flush=True)
        if images_of:
            asked = (root/'killed.txt').read_text().split()
            for name, count in finished.items(): assert asked.count(images_of[name]) == count, f'{name} was finished and is asked about again'
            whole = [json.loads(l)['file_name'] for l in file.read_bytes().splitlines(keepends=True) if l.endswith(b'\n')]
            finished = {n: asked.count(images_of[n]) for n in whole}
    assert start(root/'killed', engine, root/'killed.txt').wait() == 0
    lines = [sorted((root/w/'descriptions.jsonl').read_text().splitlines()) for w in ('calm', 'killed')]
    assert len(lines[1]) == len(set(lines[1])) == images, 'a line twice, or missing'
    assert lines[0] == lines[1], 'other lines than an undisturbed run'
    return time.time() - began

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--kills', type=int, default=100)
    ap.add_argument('--engine', choices=('threads', 'processes'), help='both when not given')
    ap.add_argument('--images', type=int, default=600)
    ap.add_argument('--describe', help=argparse.SUPPRESS); ap.add_argument('--asked', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.describe: describe(a.describe, a.engine, a.asked)
    else:
        for engine in [a.engine] if a.engine else ['threads', 'processes']:
            with tempfile.TemporaryDirectory() as root: seconds = check(root, a.kills, engine, a.images)
            print(f'{engine}: {a.kills} kills of a run over {a.images} images; every line there once, the same as undisturbed; {seconds:.0f} s')
