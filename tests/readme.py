"""Draw the tables of README.md and results/README.md from results/*.json, between their marks: `make readme`. `--check` only compares."""
import json, re, sys
from functools import partial
from pathlib import Path
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT/'README.md', ROOT/'results'/'README.md']
SUMMARY = {'phantoms': 'phantoms, dermoscopy', 'phantoms-steps': 'phantoms, dermoscopy', 'isic2018': 'ISIC 2018', 'isic2018-28': 'ISIC 2018', 'isic2018-steps': 'ISIC 2018', 'chestxray14': 'ChestX-ray14'}

def load(name): return json.loads((ROOT/'results'/name).read_text())

def number(r, k, digits):
    floor = r.get(f'{k}_floor')
    return f'{r[k]:.{digits}f}' + (f' ({floor:.{digits}f})' if floor is not None else '')

def painted(f):
    low, high = f['guidance_interval']
    return f"painted in {f['num_inference_steps']} steps, guidance {f['guidance_scale']:g} " + ('throughout' if (low, high) == (0, 1) else f'where t / T is above {low:g}')

def rows(methods):
    head = ['| | FID (floor) | KID (floor) | precision (floor) | recall (floor) | N | steps | training |', '|---|---|---|---|---|---|---|---|']
    names = {'class': 'class only', 'class+text': 'whole model, bank', 'class+text (own)': 'whole model, own prompts'}
    return head + [f"| {names.get(name, name)} | {number(r, 'fid', 1)} | {number(r, 'kid', 4)} | {number(r, 'precision', 3)} | {number(r, 'recall', 3)} | {r['n']} | {r.get('steps', '')} | {format(r['seconds']/60, '.1f') + ' min' if 'seconds' in r else ''} |"
                   for name, r in methods.items() if isinstance(r, dict) and 'kid' in r]

def quickstart():
    "One table over the seeds, and the ratios."
    runs = [load(p.name) for p in sorted((ROOT/'results').glob('quickstart-seed*.json'))]
    if not runs: return ['Not measured in this version yet: `make quickstart` does it.']
    head = ['| seed | FID class only | whole model | ratio | reconstruction, floor | recall class only | whole model | reconstruction, floor | adherence (chance) | whole command |', '|---|---|---|---|---|---|---|---|---|---|']
    for r in runs:
        a, b, c = r['class'], r['class+text'], r['reconstruction']
        head.append(f"| {r['seed']} | {a['fid']:.1f} | **{b['fid']:.1f}** | {b['fid']/a['fid']:.2f} | {c['fid']:.1f}, {b['fid_floor']:.1f} | {a['recall']:.2f} | **{b['recall']:.2f}** | {c['recall']:.2f}, {b['recall_floor']:.2f} | {b['adherence']['mean']:.2f} ({b['adherence']['chance']:.2f}) | {r['seconds']/60:.1f} min |")
    return head + ['', f"N = {runs[0]['class']['n']} images of each kind, features `{runs[0]['class']['features']}`, {runs[0]['device']}, {painted(runs[0]['class'])}."]

def chapters():
    "What each notebook says of itself, and the seconds it took."
    seconds, out = load('chapters.json'), ['| chapter | what stands at its end | minutes on 2 cores |', '|---|---|---|']
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        first = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'][:3])
        line = re.search(r'^> (.*)$', first, re.M)[1]
        took = seconds.get(path.stem)
        out.append(f"| [{path.stem[:2]} `{path.stem[3:]}`](nbs/{path.name}) | {line} | {'' if took is None else f'{took/60:.1f}'} |")
    return out

def isic2018():
    if not (ROOT/'results'/'isic2018-64-cpu.json').exists(): return ['Not measured in this version yet; CONTRIBUTING.md has the command.']
    r = load('isic2018-64-cpu.json')
    out = []
    for split, title in (('test', 'official test set'), ('val', 'validation split by lesion'), ('train', 'training split (floor: the official test set)')):
        if split not in r: continue
        halves = r[split]['class']['half_splits']
        out += [f"Against the {title}; two halves of it, N = {halves['n']}, have FID {halves['fid'][0]:.1f}:", '', *rows(r[split]), '']
    return out + [f"Features `{r['test']['class']['features']}`, {painted(r['test']['class'])}, seed {r['seed']}, {r['device']}, {r['images']['train']} training images."]

def words():
    "How often the embedded describer is right on phantoms, how well labelled sentences are read, how planted errors come back."
    from vap_diffusion.faithfulness import score_claims
    w, out = load('words.json'), ['| | describer, right on phantoms (mean; worst attributes) | held-out sentences: claims that are right | claims that are found |', '|---|---|---|---|']
    for modality, of in w['describer'].items():
        worst = ', '.join(f'{a} {v:.2f}' for a, v in sorted(of.items(), key=lambda x: x[1])[:3])
        read = score_claims(ROOT/'data'/'claims'/f'{modality}.jsonl').set_index('attribute').loc['all']
        out.append(f"| {modality} | {sum(of.values())/len(of):.2f} ({worst}) | {read.precision:.2f} of {read.claimed:.0f} | {read.recall:.2f} of {read.labelled:.0f} |")
    eye = load('read_by_eye.json')
    seen = ', '.join(f"{m} {sum(i['verdict'] == 'right' for i in eye['images'] if i['modality'] == m)} of {sum(i['modality'] == m for i in eye['images'])}" for m in w['describer'])
    off = max(abs(p['recovered'] - p['planted']) for p in w['planted'])
    near = max(abs(r['agreement'] - r['chance']) for of in w['shuffled'].values() for r in of.values())
    return out + ['', f"Errors planted on purpose (0 to 40 % of each kind, {len(w['planted'])} settings, three seeds) are counted to within {100*off:.1f} points, in wordings that the reader was developed with; shuffled descriptions score within {100*near:.1f} points of chance. Describer `{w['describer_name']}`, {w['describer_images']} phantoms a modality, `{w['command']}`. **Real images** without one wrong attribute, read by eye by an AI model and by no physician (`{eye['describer']}`): {seen}."]

def cost():
    "What wrong words do to a generator: one row for each training of the same length."
    c, out = load('hallucination_cost.json'), ['| descriptions | FID (floor) | recall (floor) | adherence to true prompts |', '|---|---|---|---|']
    for a in c['arms']:
        b = a['bank']
        out.append(f"| {a['arm']} | {number(b, 'fid', 1)} | {number(b, 'recall', 2)} | {format(a['own']['adherence']['mean'], '.2f') if 'adherence' in a['own'] else ''} |")
    return out + ['', f"Dermoscopy phantoms, {c['steps']} steps of batch {c['batch']} each, N = {c['n']}, seed {c['arms'][0]['seed']}, prompts drawn from the bank; `{c['command']}`, commit {c['commit']} (measuring describer `{c.get('describer_name', 'measure-1')}`)."]

def budget_of(c): return f"{c['minutes']:g} minutes" if c['minutes'] else f"{c['steps']} steps"

def claim(name):
    "The three methods of the paper, means over seeds, with each kind of prompt."
    c = load(f'claim-{name}.json')
    mean = lambda method, kind, k: (lambda v: sum(v)/len(v))([r['prompts'][kind][k] for r in c['rows'] if r['method'] == method])
    out = ['| | prompts | FID (floor) | ratio | recall (floor) | ratio | precision (floor) | adherence (chance) | steps |', '|---|---|---|---|---|---|---|---|---|']
    for method in dict.fromkeys(r['method'] for r in c['rows']):
        mine = [r for r in c['rows'] if r['method'] == method]
        for kind in mine[0]['prompts']:
            cell = lambda k, d: f"{mean(method, kind, k):.{d}f} ({mean(method, kind, k + '_floor'):.{d}f})"
            ratio = lambda k, d: '' if method == 'class' else f"{mean(method, kind, k)/mean('class', 'bank', k):.{d}f}"
            said = [r['prompts'][kind].get('adherence') for r in mine]
            out.append(f"| {method} | {'' if method == 'class' else kind} | {cell('fid', 1)} | {ratio('fid', 2)} | {cell('recall', 2)} | {ratio('recall', 1)} | {cell('precision', 2)} | " +
                       (f"{sum(x['mean'] for x in said)/len(said):.2f} ({sum(x['chance'] for x in said)/len(said):.2f})" if all(said) else '') + f" | {' / '.join(str(r['steps']) for r in mine)} |")
    rebuilt = [r['reconstruction'] for r in c['rows'] if r['method'] == 'class']
    halves = c['rows'][0]['prompts']['bank']['half_splits']
    bound = {k: sum(r[k] for r in rebuilt)/len(rebuilt) for k in ('fid', 'recall')}
    below = bound['fid'] < mean('class', 'bank', 'fid_floor')                       # of the very images that it is compared with
    matched = '' if below else f" (ratios {bound['fid']/mean('class', 'bank', 'fid'):.2f} and {bound['recall']/mean('class', 'bank', 'recall'):.1f})"
    more = ' and their mirror images'*c.get('flips', False) + ', timesteps drawn logit-normally'*(c.get('timesteps') == 'logit_normal')
    return out + ['', f"{budget_of(c)} for each model, {c['images']} training images{more}, N = {c['rows'][0]['n']}, seed {', '.join(seeds := [str(r['seed']) for r in c['rows'] if r['method'] == 'class'])}{' (means)'*(len(seeds) > 1)}, {painted(c['rows'][0]['prompts']['bank'])}, features `{rebuilt[0]['features']}`, {c['device']}. Two halves of the reference, N = {halves['n']}, have FID {halves['fid'][0]:.1f}. The reconstruction has FID {bound['fid']:.1f} and recall {bound['recall']:.2f}{matched}: other held-out images (the floor) would have ratios {mean('class', 'bank', 'fid_floor')/mean('class', 'bank', 'fid'):.2f} and {mean('class', 'bank', 'recall_floor')/mean('class', 'bank', 'recall'):.1f}. `{c['command']}`, commit {c['commit']}."]

def summary():
    "The whole model against the class alone, wherever both were measured; prompts from the bank, and the images' own. Means over seeds, and what each seed says."
    out = ['| images | budget of each model | N, seeds | FID: class only | whole model, bank | ratio (each seed) | whole model, own prompts | floor (each seed) | recall: class only, whole model (bank), floor |', '|---|---|---|---|---|---|---|---|---|']
    for name, title in SUMMARY.items():
        if name == 'isic2018-28':
            c = load('isic2018-64-cpu.json'); r = c['test']
            budget, found = f"{r['class']['seconds']/60:g} minutes", [pd.DataFrame([r[k]]) for k in ('class', 'class+text', 'class+text (own)')]
            n, seeds = r['class']['n'], [c['seed']]
        else:
            c = load(f'claim-{name}.json')
            of = lambda method, kind: pd.DataFrame([r['prompts'][kind] for r in c['rows'] if r['method'] == method])
            budget, found = budget_of(c), [of('class', 'bank')] + [of('class + text + prototypes', k) for k in ('bank', 'own')]
            n, seeds = c['rows'][0]['n'], [r['seed'] for r in c['rows'] if r['method'] == 'class']
        fid, recall = ([r[k].mean() for r in found] for k in ('fid', 'recall'))
        each = lambda numbers, digits: '' if len(seeds) == 1 else ' (' + ', '.join(f'{x:.{digits}f}' for x in numbers) + ')'
        best = lambda x: f'**{x:.1f}**' if x == min(fid[:2]) else f'{x:.1f}'
        floor = found[0].fid_floor
        out.append(f"| {title} | {budget} | {n}; {', '.join(map(str, seeds))} | {best(fid[0])} | {best(fid[1])} | {fid[1]/fid[0]:.2f}{each(found[1].fid/found[0].fid, 2)} | {fid[2]:.1f} | {floor.mean():.1f}{each(floor, 1)} | {recall[0]:.2f}, {recall[1]:.2f}, {found[0].recall_floor.mean():.2f} |")
    return out + ['', 'Painted in 10 steps with guidance 2 on phantoms and 1.5 on real images; features: self-supervised networks trained on the training images of each set, on phantoms for phantoms. The fifth row has mirror images and logit-normal timesteps as well, and its class-only model fewer steps than in the fourth.']

def bench():
    "Speed against its targets."
    if not (ROOT/'results'/'bench.json').exists(): return ['Not measured in this version yet: `make bench` does it.']
    b, out = load('bench.json'), ['| | measured | target |', '|---|---|---|']
    for r in b['rows']: out.append(f"| {r['what']} | {r['value']:.3g} | " + ('' if r['target'] is None else f"{'at least' if r['at_least'] else 'at most'} {r['target']:g}{'' if r['met'] else ': **missed**'}") + ' |')
    return out + ['', f"`{b['command']}`, medians of {b['runs']} alternating runs, {b['device']}, commit {b['commit']}."]

def drawn(text):
    "A page with every `<!-- results: NAME -->` block drawn again."
    tables = dict(summary=summary, quickstart=quickstart, isic2018=isic2018, chapters=chapters, words=words, cost=cost, bench=bench)
    tables |= {p.stem.replace('-', '_'): partial(claim, p.stem[6:]) for p in (ROOT/'results').glob('claim-*.json')}
    def block(m): return f"<!-- results: {m[1]} -->\n" + '\n'.join(tables[m[1]]()) + '\n<!-- end -->'
    return re.sub(r'<!-- results: (\w+) -->\n.*?<!-- end -->', block, text, flags=re.S)

def picture(path, per_class=6, seed=20):
    "Phantoms, and what the course model paints from their descriptions."
    import torch
    from vap_diffusion.phantoms import describe_attributes, make_phantom
    from vap_diffusion.pipeline import load_pipeline
    from vap_diffusion.quickstart import draw_samples
    pipe, shown = load_pipeline('course'), {}
    for label in pipe.class_names:
        phantoms = [make_phantom(label, 10**9 + seed + i) for i in range(per_class)]
        prompts = [describe_attributes(p.modality, p.attributes) for p in phantoms]
        painted = pipe([label]*per_class, prompts, generator=[torch.Generator().manual_seed(i) for i in range(per_class)], output_type='uint8').images
        shown[label] = {'real': [p.image for p in phantoms], 'class+text': painted, 'prompts': prompts}
    draw_samples(shown, path, titles=dict(real='phantoms'))

if __name__ == '__main__':
    if '--picture' in sys.argv: picture(ROOT/'assets'/'samples.png'); sys.exit()
    for path in PAGES:
        text = path.read_text()
        if '--check' in sys.argv and drawn(text) != text: sys.exit(f'{path.relative_to(ROOT)} is behind results/: run `make readme`')
        path.write_text(drawn(text))
