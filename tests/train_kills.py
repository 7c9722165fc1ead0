"""Kill a training at random moments, also while it writes a checkpoint, and compare the end with an undisturbed run.

`python tests/train_kills.py` (50 kills; `--kills 5` for a taste). Prints how many kills fell where, and fails unless weights, averages,
optimizer and every deterministic number of the log are the same, bit by bit. `--out results/train_kills.json` keeps the outcome."""
import argparse, json, os, random, shlex, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

TIMES = ('seconds', 'images_per_second', 'memory_gb', 'data_share')   # of the log: what a clock says
ENV = os.environ | dict(OMP_NUM_THREADS='1')

def folder_with_features(root, n=80):
    "A working folder, encoded."
    from vap_diffusion.datasets import prepare
    from vap_diffusion.vaps import describe_table, make_mllm
    from vap_diffusion.training import encode
    prepare('phantoms', root/'phantoms', root/'w', n=n, size=64, modality='dermoscopy', progress=False)
    describe_table(root/'w', make_mllm('measure'), progress=False)
    encode(root/'w')
    return root/'w'

def job(work, name, steps):
    """One run that writes a checkpoint after every step, so that many kills fall into the writing of one.

    It is stopped after the last step, so that the last checkpoint stays."""
    code = f"""
from vap_diffusion.training import train
def stop(model, folder, step): raise KeyboardInterrupt
try: train({str(work)!r}, steps={steps}, name={name!r}, save_every=0, watch=stop, watch_every={steps}, progress=False, \
embed_dim=64, depth=2)
except KeyboardInterrupt: pass"""
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], env=ENV)

def ending(run):
    "Weights and log of a finished run."
    from safetensors.torch import load_file
    from vap_diffusion.training import log_lines
    return (load_file(run/'model'/'diffusion_pytorch_model.safetensors'),
            [{k: v for k, v in l.items() if k not in TIMES} for l in log_lines(run/'log.jsonl')])

def last_state(run, steps):
    "The last checkpoint, all tensors of it, and the log."
    from safetensors.torch import load_file
    from vap_diffusion.training import log_lines
    folder = run/'checkpoints'/f'step-{steps:09}'
    tensors = {f'{file}.{k}': v for file in ('model', 'ema', 'optimizer') for k, v in load_file(folder/f'{file}.safetensors').items()}
    return (tensors, json.loads((folder/'state.json').read_text())['mean_loss'],
            [{k: v for k, v in l.items() if k not in TIMES} for l in log_lines(run/'log.jsonl')])

def disturb(work, steps, kills, seed=0):
    "Kill `kills` times, then let it finish. Returns how many kills met a half-written checkpoint."
    rng, torn, run = random.Random(seed), 0, work/'models'/'killed'
    for i in range(kills):
        for p in run.glob('checkpoints/*.part'): shutil.rmtree(p)       # of an earlier kill: a new one is counted
        before, process = set(run.glob('checkpoints/step-*')), job(work, 'killed', steps)
        while process.poll() is None and set(run.glob('checkpoints/step-*')) <= before: time.sleep(0.005)   # it is under way
        time.sleep(rng.uniform(0, 0.15))
        assert process.poll() is None, f'the run was over at kill {i}: give more steps'
        process.send_signal(signal.SIGKILL); process.wait()
        torn += any(p.suffix == '.part' for p in run.glob('checkpoints/*'))
        print(f'kill {i + 1} of {kills}: newest checkpoint {max(p.name for p in run.glob("checkpoints/step-*"))}', flush=True)
    assert job(work, 'killed', steps).wait() == 0
    return torn

def main(kills=50, root=None, out=None):
    import torch
    start, root = time.time(), Path(root or tempfile.mkdtemp())
    work, steps = folder_with_features(root), 60 + 8*kills
    assert job(work, 'undisturbed', steps).wait() == 0
    torn = disturb(work, steps, kills)
    (a, loss_a, log_a), (b, loss_b, log_b) = (last_state(work/'models'/n, steps) for n in ('undisturbed', 'killed'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), 'other weights, averages or moments'
    assert log_a == log_b and loss_a == loss_b, 'another log'
    assert torn or kills < 50, 'no kill fell into the writing of a checkpoint: that is not tested then'
    print(f'{kills} kills, {torn} of them while a checkpoint was written: same weights, averages and optimizer '
          f'({len(a)} tensors), same {len(log_a)} lines of log, {time.time() - start:.0f} s')
    if out: # only a run that passed gets here
        from vap_diffusion.quickstart import machine
        Path(out).write_text(json.dumps(dict(kills=kills, torn=torn, steps=steps, tensors=len(a), log_lines=len(log_a),
                                             seconds=round(time.time() - start), command=f'python {shlex.join(sys.argv)}',
                                             **machine()), indent=1) + '\n')

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--kills', type=int, default=50)
    ap.add_argument('--out', help='a JSON file for the outcome')
    a = ap.parse_args()
    main(a.kills, out=a.out)
