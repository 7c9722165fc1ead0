"""The paper's claim under one protocol: U-ViT on the class alone, + descriptions, + prototypes; on any prepared data set.

`python tests/claim.py W0 W1 --minutes 5.5 --out results/claim-phantoms.json`: folders that `quickstart` left (its two models are used as
they are), or that `prepare`, `describe` and `encode` filled; each has a seed of its own, or `--seeds 0 1` trains several in each.
All methods get the same images, latents and budget, in seconds or in steps, both recorded. Judged on held-out images: prompts drawn from
the bank, the images' own, and recombined ones that training never had. Goes on where it stopped; the file is written after each seed."""
import argparse, shlex, sys, time
from pathlib import Path
from vap_diffusion.datasets import load_table, read_json, write_json
from vap_diffusion.pipeline import build_pipeline, sample
from vap_diffusion.quickstart import draw_samples, floor_split, judge, machine, shown_images
from vap_diffusion.training import load_features, train_together

METHODS = {'class': dict(text=False), 'class + text': dict(prototypes=False), 'class + text + prototypes': {}}
PROMPTS = ('bank', 'own', 'unseen')

def arguments(argv):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('work', type=Path, nargs='+', help='working folders, encoded; trained side by side')
    ap.add_argument('--out', type=Path, required=True, help='the file of results')
    ap.add_argument('--seeds', type=int, nargs='+', help="of training and sampling; without them the table's own")
    ap.add_argument('--minutes', type=float)
    ap.add_argument('--steps', type=int)
    ap.add_argument('--timesteps', help='how training draws the steps of the schedule; uniform, as in the paper, when not given')
    ap.add_argument('--grid', type=Path, help='a picture of the seven largest classes, from the first folder: class only and the whole '
                                              'model, same seeds; real images only of phantoms')
    ap.add_argument('--features', default='phantoms', help='the judge: a name or folder')
    ap.add_argument('--n', type=int, default=1000, help='painted images of each kind; at most those of the split')
    ap.add_argument('--prompts', nargs='+', choices=PROMPTS, default=PROMPTS, help='kinds of prompts; bank first')
    ap.add_argument('--split', default='test')
    ap.add_argument('--guidance', type=float, default=2)
    return ap.parse_args(argv)

def main(argv=None):
    a, start = arguments(argv), time.time()
    tables, earlier = [load_table(w) for w in a.work], read_json(a.out) if a.out.exists() else {}
    record, attrs = load_features(a.work[0]).record, tables[0].attrs
    facts = dict(command=f'python tests/claim.py {shlex.join(sys.argv[1:] if argv is None else argv)}', dataset=attrs['dataset'],
                 images=int((tables[0].split == 'train').sum()), split=a.split, minutes=a.minutes, steps=a.steps, guidance=a.guidance,
                 features=a.features, size=record['size'])
    if a.timesteps: facts['timesteps'] = a.timesteps
    if record['flips']: facts['flips'] = True
    if odd := [k for k in facts if k not in ('command', 'images') and earlier and earlier.get(k) != facts[k]]:
        sys.exit(f'{a.out} holds another claim ({", ".join(odd)} differ): give another --out, or delete it')
    def count(table): # of both sets, or the floor would come from halves, at half of N
        return min(a.n, *(int((table.split == s).sum()) for s in (a.split, floor_split(a.split))))
    rows, runs = earlier.get('rows', []), {}
    if odd := [r for r in rows if r['n'] != count(tables[0])]:
        sys.exit(f'{a.out} holds figures of {odd[0]["n"]} images: give another --out, or delete it')
    jobs = [(w, t, seed) for w, t in zip(a.work, tables) for seed in a.seeds or [t.attrs['seed']]]
    budget = dict(minutes=a.minutes, steps=a.steps, preset=None) | ({'timesteps': a.timesteps} if a.timesteps else {})
    for method, how in METHODS.items():          # all trainings first: what has a budget in seconds wants a quiet machine
        name = lambda seed: f"{method.split(' + ')[-1]}-seed{seed}" if a.seeds else None
        runs[method] = train_together([dict(out=w, seed=seed, name=name(seed)) | budget | how for w, _, seed in jobs])
    for i, (w, table, seed) in enumerate(jobs):
        if any((r['seed'], r['work']) == (seed, w.name) for r in rows): continue
        n, sets, vae = count(table), {}, None
        for method in METHODS:
            run, pipe = runs[method][i], build_pipeline(runs[method][i])
            vae = vae or pipe.vae
            for kind in a.prompts if pipe.config.uses_text else PROMPTS[:1]:
                sets[method, kind] = w/'claim'/f'{run.name}-{kind}-{a.split}'
                sample(pipe, sets[method, kind], n, like=w, split=a.split, prompts=kind, seed=seed, guidance_scale=a.guidance)
        found = judge(sets, vae, table, record['size'], a.split, n, a.features, seed)
        for method in METHODS:
            made, mine = read_json(runs[method][i]/'train.json'), {kind: found[m, kind] for m, kind in sets if m == method}
            spent = {k: made[k] for k in ('steps', 'images_seen', 'seconds', 'cpu_seconds', 'parameters')}
            rows.append(dict(method=method, seed=seed, work=w.name, n=n, **spent, prompts=mine, reconstruction=found['reconstruction']))
            told = ('fid', 'fid_infinity', 'recall', 'precision')
            print(method, seed, {kind: {f: round(of[f], 3) for f in told if f in of} for kind, of in mine.items()}, flush=True)
        write_json(a.out, facts | dict(seconds=round(earlier.get('seconds', 0) + time.time() - start), rows=rows, **machine()))
    if a.grid:
        pipes = {'class': build_pipeline(runs['class'][0]), 'class+text': build_pipeline(runs['class + text + prototypes'][0])}
        shown = shown_images(pipes, a.work[0], tables[0], record['size'], a.split, 4, attrs['seed'], a.guidance)
        common = tables[0].label.value_counts().index[:7]
        draw_samples({label: s for label, s in shown.items() if label in common}, a.grid, real=attrs['dataset'] == 'phantoms',
                     titles={'real': 'phantoms'})

if __name__ == '__main__': main()
