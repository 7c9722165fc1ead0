"""How much alpha, how many prototypes? `python tests/prototype_study.py --work runs/prototype_study --out results/prototype_study.json`

Trains the `cpu` preset for equally many steps on dermoscopy phantoms: for each alpha, K and seed once, and once without prototypes.
With equal seeds the start of the backbone, the batches, the steps and the noise are equal, too, so settings are compared in pairs.
Judged by the validation loss with fixed noise, for all; by adherence to validation prompts for the default, the best and the model without.
The file is written after each run; stopped and called again, the study goes on.
"""
import argparse, json, shlex, sys, time
from pathlib import Path
import numpy as np
import torch
from torch.nn import functional as F
from diffusers import DDPMScheduler
from vap_diffusion.datasets import load_table, prepare, write_json
from vap_diffusion.diffusion import SD_SCHEDULE
from vap_diffusion.pipeline import build_pipeline, load_samples, sample
from vap_diffusion.prototype import PrototypeUViT
from vap_diffusion.quickstart import adherence_of, machine
from vap_diffusion.training import draw_batch, encode, load_features, target_of, train
from vap_diffusion.uvit import UViT
from vap_diffusion.vaps import describe_table, make_mllm

DEFAULT = dict(alpha=0.1, K=32)   # of `train`; twice the 16 patches

@torch.no_grad()
def validate(run, out, batches=40, batch_size=64) -> dict:
    """Loss on the validation split, the same images, steps and noise for every model;
    and the share of F_e that the prototypes do not rebuild."""
    settings = json.loads((run/'train.json').read_text())['settings']
    model = (PrototypeUViT if settings['prototypes'] else UViT).from_pretrained(run/'model').eval()
    features, scheduler, g = (load_features(out, 'val'),
                              DDPMScheduler(**SD_SCHEDULE, prediction_type=settings['preset']['prediction_type']),
                              torch.Generator().manual_seed(12345))
    sizes, losses, recon = [], [], []
    if settings['prototypes']:
        model.pcm.register_forward_hook(lambda pcm, args, out: sizes.append(
            0.5*(args[0] if args[2] is None else args[0][args[2]]).square().mean().item()))
    for _ in range(batches):
        x0, noise, t, labels, text, mask = draw_batch(features, batch_size, g, drop=0)
        output = model(scheduler.add_noise(x0, noise, t), t, labels, text, mask)
        losses.append(F.mse_loss(output.sample, target_of(scheduler, x0, noise, t)).item())
        if output.recon_loss is not None: recon.append(output.recon_loss.item())
    return dict(val_loss=np.mean(losses)) | (
        dict(recon_loss=np.mean(recon), not_rebuilt=np.mean(recon)/np.mean(sizes)) if recon else {})

def adhere(run, out, n, seed) -> dict:
    "What the measuring describer reads of the validation prompts in n painted images."
    folder = run/f'adherence-{n}'
    sample(build_pipeline(run), folder, n, like=out, split='val', prompts='own', seed=seed, progress=False)
    return adherence_of(*load_samples(folder), load_table(out))

def summary(runs, alphas, ks, seeds) -> dict:
    "Means over seeds; differences to the default, in pairs, with their standard error; and the choice."
    loss = {(r['alpha'], r['K'], r['seed']): r['val_loss'] for r in runs}
    base, table = (DEFAULT['alpha'], DEFAULT['K']), []
    for a, k in [(None, None)] + [(a, k) for a in alphas for k in ks]:
        both = [s for s in seeds if (a, k, s) in loss and (*base, s) in loss]
        if not both: continue
        d = np.array([loss[a, k, s] - loss[*base, s] for s in both])
        table.append(dict(alpha=a, K=k, seeds=len(both), val_loss=float(np.mean([loss[a, k, s] for s in both])),
                          difference=float(d.mean())))
    spread = [np.var([loss[r['alpha'], r['K'], s] - loss[*base, s] for s in seeds], ddof=1) for r in table
              if r['seeds'] == len(seeds) > 1 and (r['alpha'], r['K']) != base]
    error = float(np.sqrt(np.mean(spread)/len(seeds))) if spread else None   # of one difference, pooled over the settings
    grid = [r for r in table if r['alpha'] is not None and r['seeds'] == len(seeds)]
    best = min(grid, key=lambda r: r['val_loss'], default=None)
    better = best is not None and error is not None and best['difference'] < -2*error
    return dict(table=table, standard_error=error, best=best and {k: best[k] for k in ('alpha', 'K')},
                chosen={k: best[k] for k in ('alpha', 'K')} if better else DEFAULT,
                rule='the default stays unless the best setting is better by more than two standard errors of a paired difference')

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--work', type=Path, default=Path('runs/prototype_study'))
    ap.add_argument('--out', type=Path, default=Path('results/prototype_study.json'))
    ap.add_argument('--n', type=int, default=2000, help='dermoscopy phantoms')
    ap.add_argument('--steps', type=int, default=1500)
    ap.add_argument('--alphas', type=float, nargs='+', default=[0.01, 0.1, 1.])
    ap.add_argument('--ks', type=int, nargs='+', default=[8, 32, 128])
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    ap.add_argument('--samples', type=int, default=300, help='images for adherence')
    a = ap.parse_args(argv)
    prepare('phantoms', a.work/'phantoms', a.work, n=a.n, size=64, seed=0, modality='dermoscopy')
    describe_table(a.work, make_mllm('measure'))
    encode(a.work)
    found = json.loads(a.out.read_text()) if a.out.exists() else {}
    record = dict(command=f'python tests/prototype_study.py {shlex.join(sys.argv[1:] if argv is None else argv)}'.strip(),
                  n=a.n, steps=a.steps, seeds=a.seeds, batch_size=16, default=DEFAULT) | machine()
    if found and any(found[k] != record[k] for k in ('n', 'steps')):
        raise SystemExit(f'{a.out} holds another study: give another --out and --work')
    runs, seconds, began = found.get('runs', []), found.get('seconds', 0), time.time()
    def keep():
        write_json(a.out, record | dict(seconds=round(seconds + time.time() - began), finished=finished,
                                        summary=summary(runs, a.alphas, a.ks, a.seeds), runs=runs))
    finished = False
    for seed in a.seeds:
        for alpha, k in [(None, None), (DEFAULT['alpha'], DEFAULT['K'])] + [(x, k) for x in a.alphas for k in a.ks]:
            if any((r['alpha'], r['K'], r['seed']) == (alpha, k, seed) for r in runs): continue
            name = f'none-s{seed}' if alpha is None else f'a{alpha:g}-k{k}-s{seed}'
            extra = {} if alpha is None else dict(alpha=alpha, num_prototypes=k)
            run = train(a.work, steps=a.steps, preset='cpu', name=name, seed=seed, prototypes=alpha is not None,
                        progress=False, batch_size=16, **extra)
            made = json.loads((run/'train.json').read_text())
            runs.append(dict(alpha=alpha, K=k, seed=seed, steps=made['steps'], seconds=made['seconds'],
                             cpu_seconds=made['cpu_seconds'], parameters=made['parameters'], name=name,
                             **validate(run, a.work)))
            print(json.dumps(runs[-1]), flush=True); keep()
    best = summary(runs, a.alphas, a.ks, a.seeds)['best']     # None when no setting has all seeds yet
    judged = {(None, None), (DEFAULT['alpha'], DEFAULT['K'])} | ({tuple(best.values())} if best else set())
    for r in runs:
        if (r['alpha'], r['K']) in judged and 'adherence' not in r:
            r['adherence'] = adhere(a.work/'models'/r['name'], a.work, a.samples, 0)
            keep()
    finished = True; keep()

if __name__ == '__main__': main()
