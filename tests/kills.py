"""Kill `describe` at random moments with kill -9, run it again each time, and compare the end with an undisturbed run.

`python tests/kills.py` (100 kills for each engine; `--kills 5` for a taste, `--engine threads` for one). The threads ask a
stand-in model that takes its time; the processes measure. Fails when a line is lost, written twice, or different, or when an image
whose line was finished is asked about again. `--out results/kills.json` keeps how many kills fell where."""
import argparse, json, os, random, shlex, signal, subprocess, sys, tempfile, threading, time
from collections import Counter
from pathlib import Path

class Steady:
    "A stand-in for a model behind a server: waits, then says something that depends on the question and image alone."
    name = 'steady'
    def __init__(self, seconds=0., concurrency=1, dies_at=None, log=None):
        (self.seconds, self.concurrency, self.dies_at, self.log, self.n, self.now, self.most, self.lock,
         self.answered_last) = seconds, concurrency, dies_at, log, 0, 0, 0, threading.Lock(), set()
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
    "What one process does. The processes' log gets a line for each image that is measured, written by the worker that does it."
    from vap_diffusion import vaps
    log = os.open(asked, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if engine == 'processes':
        work_on = vaps.describe_files
        def logged(prompters, paths, modality):
            answers = work_on(prompters, paths, modality)
            os.write(log, (Path(paths[0]).name + '\n').encode()); return answers
        vaps.describe_files = logged                                          # the workers are forks
    vaps.write_descriptions(work, Steady(.02, 8, log=log) if engine == 'threads' else None, progress=False)

def start(work, engine, asked):
    return subprocess.Popen([sys.executable, '-W', 'ignore', __file__, '--describe', str(work), '--engine', engine,
                             '--asked', str(asked)], env=os.environ | dict(OMP_NUM_THREADS='1'))

def size(path): return path.stat().st_size if path.exists() else 0

def whole_lines(path):
    return [l for l in path.read_bytes().splitlines(keepends=True) if l.endswith(b'\n')] if path.exists() else []

def check(root, kills, engine, images, seed=0):
    """Returns what happened: where the kills fell. AssertionError when anything was lost, doubled, changed or asked again.

    About 30 % of the kills fall at any time from the start of the process on (as long as it takes to its first line,
    and 0.3 s more), the others shortly after a new line. Before every fourth run some of the file's end is cut off, at
    any byte: a torn line, as a power cut leaves it; its image is asked about again, and no other."""
    from vap_diffusion.datasets import load_image, prepare
    from vap_diffusion.phantoms import write_phantoms
    began, root, rng = time.time(), Path(root), random.Random(seed)
    write_phantoms(root/'p', images, size=32, seed=1, progress=False)
    for w in ('calm', 'killed'): table = prepare('phantoms', root/'p', root/w, n=images, size=32, seed=1, progress=False)
    start_up, calm = time.time(), start(root/'calm', engine, root/'calm.txt')
    while calm.poll() is None and not size(root/'calm'/'descriptions.jsonl'): time.sleep(.002)
    start_up = time.time() - start_up                                         # seconds to the first line
    assert calm.wait() == 0
    file, log = root/'killed'/'descriptions.jsonl', root/'killed.txt'
    name_of = {f: hash_of(load_image(root/'p'/f)) if engine == 'threads' else Path(f).name for f in table.file_name} # as the log calls it
    # image -> how often it had been asked about when its line was there
    finished, fell = {}, dict(before_question_2=0, before_a_new_line=0, after_a_new_line=0, torn_by_the_kill=0,
                              torn_by_hand=0)
    def compare():
        asked = Counter(log.read_text().split()) if log.exists() else Counter()
        for name, count in finished.items():
            assert asked[name_of[name]] == count, f'{name} was finished and is asked about again'
        lines = whole_lines(file); finished.clear()
        finished.update({n: asked[name_of[n]] for n in (json.loads(l)['file_name'] for l in lines)})
        assert len(finished) == len(lines), 'a line twice'
        assert all(finished.values()), 'a line about an image that the log does not know'
    killed = runs = 0
    while killed < kills:
        runs += 1
        if runs % 4 == 0 and size(file):                                      # a torn tail
            lines = whole_lines(file); cut = rng.randint(1, len(lines[-1]) - 1) if lines else 0
            data = b''.join(lines); file.write_bytes(data[:len(data) - cut]); fell['torn_by_hand'] += bool(cut)
            if lines: finished.pop(json.loads(lines[-1])['file_name'], None)
        before, process, any_time = size(file), start(root/'killed', engine, log), rng.random() < .3
        if any_time: until = time.time() + rng.uniform(0, start_up + .3)
        while process.poll() is None and (time.time() < until if any_time else size(file) <= before): time.sleep(.002)
        if not any_time: time.sleep(rng.uniform(0, .03))
        if process.poll() is not None: # it was finished: take some lines away, so that there is work to be killed at
            assert process.returncode == 0
            compare()
            kept = whole_lines(file); rng.shuffle(kept)
            file.write_bytes(b''.join(kept[:len(kept)//3])); finished.clear(); compare()
            continue
        process.send_signal(signal.SIGKILL); process.wait(); killed += 1
        if engine == 'processes': time.sleep(.05)                             # the workers end with their parent, a moment later
        fell['after_a_new_line' if size(file) > before else 'before_a_new_line'] += 1
        fell['before_question_2'] += not (root/'killed'/'t2.json').exists()
        fell['torn_by_the_kill'] += size(file) > sum(map(len, whole_lines(file)))
        if killed % 10 == 0: print(f'{engine}: {killed} kills, {time.time() - began:.0f} s', flush=True)
        compare()
        # Question 2 is to be asked again, and kills may fall into that
        if killed % 5 == 0: (root/'killed'/'t2.json').unlink(missing_ok=True)
    assert start(root/'killed', engine, log).wait() == 0
    compare()
    lines = [sorted((root/w/'descriptions.jsonl').read_text().splitlines()) for w in ('calm', 'killed')]
    assert len(lines[1]) == len(set(lines[1])) == images, 'a line twice, or missing'
    assert lines[0] == lines[1], 'other lines than an undisturbed run'
    return dict(engine=engine, kills=kills, runs=runs, images=images, **fell,
                seconds_to_the_first_line=round(start_up, 2), seconds=round(time.time() - began))

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--kills', type=int, default=100)
    ap.add_argument('--engine', choices=('threads', 'processes'), help='both when not given')
    ap.add_argument('--images', type=int, default=600)
    ap.add_argument('--out', help='a JSON file for the outcome')
    ap.add_argument('--describe', help=argparse.SUPPRESS); ap.add_argument('--asked', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.describe: describe(a.describe, a.engine, a.asked)
    else:
        found = []
        for engine in [a.engine] if a.engine else ['threads', 'processes']:
            with tempfile.TemporaryDirectory() as root: found.append(check(root, a.kills, engine, a.images))
            print(f"{engine}: {a.kills} kills of a run over {a.images} images; every line there once, "
                  f"the same as undisturbed, nothing finished asked again: {found[-1]}", flush=True)
        if a.out: # only a run that passed gets here
            from vap_diffusion.quickstart import machine
            Path(a.out).write_text(json.dumps(dict(runs=found, seconds=sum(f['seconds'] for f in found),
                                                   command=f'python {shlex.join(sys.argv)}', **machine()), indent=1) + '\n')
