"""Peak memory and seconds of precision and recall, ours against dense implementations: `python tests/bench_metrics.py`.

Each implementation gets a process of its own. Peaks are the kernel's high-water mark of resident memory (VmHWM), so
memory of any library counts; what stands in the process before the work (Python, torch, the two feature sets) is
measured too and named. `memory(n, width)` is for other scripts; the command writes results/metrics_memory.json and
fails when the streamed form needs more than a tenth of a dense one.
"""
import argparse, json, platform, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MB = 2**20

def resident(key:str) -> int:
    "Bytes of this process by /proc: VmRSS (now) or VmHWM (peak). Unlike ru_maxrss, the peak starts anew with the program."
    line, = (l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key + ':'))
    return int(line.split()[1])*1024

def ours(real, fake):
    from vap_diffusion.metrics import ImprovedPrecisionRecall
    metric = ImprovedPrecisionRecall()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute()

def dense(real, fake, k=3, double=False):
    "The definition, with whole distance matrices in torch: one at a time, as lean as that allows."
    import torch
    if double: real, fake = real.double(), fake.double()
    def covered(points, centres):
        radii = torch.cdist(centres, centres).topk(k + 1, dim=1, largest=False).values[:, k]    # the point itself is among them
        return (torch.cdist(points, centres) <= radii).any(1).double().mean()
    return covered(fake, real), covered(real, fake)

def dense64(real, fake): return dense(real, fake, double=True)

def fidelity(real, fake):
    "torch-fidelity 0.4's `prc`, which takes the generated images first."
    from torch_fidelity.metric_prc import calculate_precision_recall_full
    return calculate_precision_recall_full(fake, real)

def features(n, width):
    "Real and fake features, float32."
    import torch
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=g), 0.97*torch.randn(n, width, generator=g) + 0.01

def work(name, n, width):
    "In a process of its own: one implementation. Prints a JSON line."
    import torch
    import vap_diffusion.metrics                                        # the same libraries in every process
    torch.set_num_threads(1)
    empty, (real, fake) = resident('VmRSS'), features(n, width)
    for half in (real, fake): globals()[name](half[:64], half[:64])     # libraries load their kernels before the clock runs
    Path('/proc/self/clear_refs').write_text('5')                       # the peak starts here
    before, start = resident('VmRSS'), time.time()
    precision, recall = globals()[name](real, fake)
    print(json.dumps(dict(libraries=empty//MB, features=(before - empty)//MB, peak=resident('VmHWM')//MB,
                          working=(resident('VmHWM') - before)//MB, seconds=round(time.time() - start, 1),
                          precision=float(precision), recall=float(recall))))

def memory(n:int=20_000, width:int=2048, names=('ours', 'dense', 'dense64', 'fidelity')) -> dict[str, dict]:
    "Name -> MB before (libraries, features), peak, working (peak above both), seconds and the two figures."
    found = {}
    for name in names:
        done = subprocess.run([sys.executable, __file__, '--one', name, '--n', str(n), '--width', str(width)],
                              capture_output=True, text=True, cwd=ROOT)
        if done.returncode == 0: found[name] = json.loads(done.stdout.splitlines()[-1])
        elif 'torch_fidelity' in done.stderr: print('torch-fidelity is not installed: not measured')
        else: sys.exit(done.stderr)
    return found

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--n', type=int, default=20_000, help='images on each side')
    ap.add_argument('--width', type=int, default=2048, help='features')
    ap.add_argument('--names', default='ours,dense,dense64,fidelity')
    ap.add_argument('--out', type=Path, default=ROOT/'results'/'metrics_memory.json')
    ap.add_argument('--one', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return work(a.one, a.n, a.width)
    found = memory(a.n, a.width, a.names.split(','))
    for name, f in found.items(): print(f'{name:9}', f)
    share = {name: dict(working=found['ours']['working']/f['working'],
                        with_features=(found['ours']['peak'] - found['ours']['libraries'])/(f['peak'] - f['libraries']))
             for name, f in found.items() if name != 'ours'}
    for name, s in share.items():
        print(f"ours / {name}: working memory {s['working']:.3f}, with the features {s['with_features']:.3f}")
    import torch
    a.out.write_text(json.dumps(dict(n=a.n, width=a.width, k=3, unit='MB', device=f'{platform.machine()} CPU, 1 thread',
                                     torch=torch.__version__,
                                     command=f'python tests/bench_metrics.py --n {a.n} --width {a.width}',
                                     **found, share=share), indent=1) + '\n')
    if any(s['working'] > 0.1 for s in share.values()):
        sys.exit('more than a tenth of the working memory of a dense implementation')

if __name__ == '__main__': main()
