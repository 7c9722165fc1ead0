"""Draw the tables of README.md and results/README.md from results/*.json, between their marks: `make readme`. `--check` only compares."""
import json, re, sys
from functools import partial
from pathlib import Path
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT/'README.md', ROOT/'results'/'README.md']
SUMMARY = {'phantoms': 'phantoms, dermoscopy', 'phantoms-steps': 'phantoms, dermoscopy', 'isic2018': 'ISIC 2018, official test set',
           'isic2018-val': 'ISIC 2018, held-out lesions', 'chestxray14': 'ChestX-ray14'}

def load(name): return json.loads((ROOT/'results'/name).read_text())

def table(head, rows) -> list[str]:
    "Lines of Markdown."
    line = lambda cells: '|' + ''.join(f' {c} |' for c in cells)
    return [line(head).replace('|  |', '| |'), '|' + '---|'*len(head)] + [line(cells) for cells in rows]

def mean(numbers): return sum(numbers)/len(numbers)

def number(r, k, digits):
    floor = r.get(f'{k}_floor')
    return f'{r[k]:.{digits}f}' + (f' ({floor:.{digits}f})' if floor is not None else '')

def painted(f):
    low, high = f['guidance_interval']
    where = 'throughout' if (low, high) == (0, 1) else f'where t / T is above {low:g}'
    return f"painted in {f['num_inference_steps']} steps, guidance {f['guidance_scale']:g} {where}"

def against(methods):
    "What one split says of each method."
    names = {'class': 'class only', 'class+text': 'whole model, bank', 'class+text (own)': 'whole model, own prompts'}
    return table(['', 'FID (floor)', 'KID (floor)', 'precision (floor)', 'recall (floor)', 'coverage (floor)', 'N', 'steps',
                  'training'],
                 [[names.get(name, name), number(r, 'fid', 1), number(r, 'kid', 4), number(r, 'precision', 3), number(r, 'recall', 3),
                   number(r, 'coverage', 3), r['n'], r.get('steps', ''), f"{r['seconds']/60:.1f} min" if 'seconds' in r else '']
                  for name, r in methods.items() if isinstance(r, dict) and 'kid' in r])

def quickstart():
    "One table over the seeds, and the ratios."
    runs, rows = [load(p.name) for p in sorted((ROOT/'results').glob('quickstart-seed*.json'))], []
    for r in runs:
        a, b, c = r['class'], r['class+text'], r['reconstruction']
        rows.append([r['seed'], f"{a['fid']:.1f}", f"**{b['fid']:.1f}**",
                     f"{b['fid']/a['fid']:.2f} ({b['fid_infinity']/a['fid_infinity']:.2f})",
                     f"{c['fid']:.1f}, {b['fid_floor']:.1f}",
                     f"{b['kid']/a['kid']:.2f}",
                     f"{a['recall']:.2f}", f"**{b['recall']:.2f}**", f"{c['recall']:.2f}, {b['recall_floor']:.2f}",
                     f"{b['adherence']['mean']:.2f} ({b['adherence']['chance']:.2f})", f"{r['seconds']/60:.1f} min"])
    head = ['seed', 'FID class only', 'whole model', 'ratio (N to infinity)', 'reconstruction, floor', 'ratio of KID', 'recall class only',
            'whole model', 'reconstruction, floor', 'adherence (chance)', 'whole command']
    first = runs[0]['class']
    return table(head, rows) + ['',
        f"N = {first['n']} images of each kind, features `{first['features']}`, {runs[0]['device']}, {painted(first)}, "
        f"commit {', '.join(dict.fromkeys(r['commit'] for r in runs))}."]

def chapters():
    "What each notebook says of itself, and the seconds it took."
    seconds, rows = load('chapters.json'), []
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        first = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'][:3])
        line = re.search(r'^> (.*)$', first, re.M)[1]
        (number, _, module), took = path.stem.partition('_'), seconds.get(path.stem)
        rows.append([f"[{number} `{module}`](nbs/{path.name})", line, '' if took is None else f'{took/60:.1f}'])
    return table(['chapter', 'what stands at its end', 'minutes on 2 cores'], rows)

def isic2018():
    "The long training: three references, each with its floor."
    r, out = load('isic2018-64-cpu.json'), []
    titles = {'test': 'official test set', 'val': 'validation split by lesion', 'train': 'training split (floor: the official test set)'}
    for split, title in titles.items():
        halves = r[split]['class']['half_splits']
        out += [f"Against the {title}; two halves of it, N = {halves['n']}, have FID {halves['fid'][0]:.1f}:", '', *against(r[split]), '']
    first = r['test']['class']
    return out + [f"Features `{first['features']}`, {painted(first)}, seed {r['seed']}, {r['device']}, "
                  f"{r['images']['train']} training images."]

def words():
    "How often the embedded describer is right on phantoms, how well labelled sentences are read, how planted errors come back."
    from vap_diffusion.faithfulness import score_claims
    w, eye, rows, seen = load('words.json'), load('read_by_eye.json'), [], []
    for modality, of in w['describer'].items():
        worst = ', '.join(f'{a} {v:.2f}' for a, v in sorted(of.items(), key=lambda x: x[1])[:3])
        read = score_claims(ROOT/'data'/'claims'/f'{modality}.jsonl').set_index('attribute').loc['all']
        rows.append([modality, f'{mean(of.values()):.2f} ({worst})', f'{read.precision:.2f} of {read.claimed:.0f}',
                     f'{read.recall:.2f} of {read.labelled:.0f}'])
        mine = [i['verdict'] == 'right' for i in eye['images'] if i['modality'] == modality]
        seen.append(f'{modality} {sum(mine)} of {len(mine)}')
    off = max(abs(p['recovered'] - p['planted']) for p in w['planted'])
    near = max(abs(r['agreement'] - r['chance']) for of in w['shuffled'].values() for r in of.values())
    head = ['', 'describer, right on phantoms (mean; worst attributes)', 'held-out sentences: claims that are right',
            'claims that are found']
    return table(head, rows) + ['',
        f"Errors planted on purpose (0 to 40 % of each kind, {len(w['planted'])} settings, three seeds) come back "
        f"{'exactly' if off < 5e-4 else f'within {100*off:.1f} points'}, in wordings that the reader was developed with; "
        f"shuffled descriptions score within {100*near:.1f} points "
        "of chance. "
        f"Describer `{w['describer_name']}`, {w['describer_images']} phantoms a modality, `{w['command']}`. "
        f"**Real images** without one wrong attribute, read by eye by an AI model and by no physician (`{eye['describer']}`): "
        f"{', '.join(seen)}."]

def cost():
    "What wrong words do to a generator: one row for each training of the same length."
    c = load('hallucination_cost.json')
    rows = [[a['arm'], number(a['bank'], 'fid', 1), number(a['bank'], 'recall', 2),
             f"{a['own']['adherence']['mean']:.2f}" if 'adherence' in a['own'] else ''] for a in c['arms']]
    return table(['descriptions', 'FID (floor)', 'recall (floor)', 'adherence to true prompts'], rows) + ['',
        f"Dermoscopy phantoms, {c['steps']} steps of batch {c['batch']} each, N = {c['n']}, seed {c['arms'][0]['seed']}, "
        f"prompts drawn from the bank; `{c['command']}`, commit {c['commit']} "
        f"(measuring describer `{c.get('describer_name', 'measure-1')}`)."]

def budget_of(c): return f"{c['minutes']:g} minutes" if c['minutes'] else f"{c['steps']} steps"

def claim(name):
    "The three methods of the paper, means over seeds, with each kind of prompt."
    c, rows = load(f'claim-{name}.json'), []
    of = lambda method, kind: [r['prompts'][kind] for r in c['rows'] if r['method'] == method]
    only = {k: mean([f[k] for f in of('class', 'bank')]) for k in ('fid', 'kid', 'recall', 'fid_floor', 'recall_floor')}
    for method in dict.fromkeys(r['method'] for r in c['rows']):
        mine = [r for r in c['rows'] if r['method'] == method]
        for kind in mine[0]['prompts']:
            found = of(method, kind)
            of_all = {k: mean([f[k] for f in found]) for k, v in found[0].items() if isinstance(v, float)}
            said = [f.get('adherence') for f in found]
            ratio = lambda k, digits: '' if method == 'class' else f'{of_all[k]/only[k]:.{digits}f}'
            rows.append([method, '' if method == 'class' else kind, number(of_all, 'fid', 1), ratio('fid', 2),
                         number(of_all, 'kid', 4), ratio('kid', 2), number(of_all, 'recall', 2), ratio('recall', 1),
                         number(of_all, 'coverage', 2), number(of_all, 'precision', 2),
                         f"{mean([x['mean'] for x in said]):.2f} ({mean([x['chance'] for x in said]):.2f})" if all(said) else '',
                         ' / '.join(str(r['steps']) for r in mine)])
    class_only = [r for r in c['rows'] if r['method'] == 'class']
    seeds, first = [str(r['seed']) for r in class_only], of('class', 'bank')[0]
    rebuilt = {k: mean([r['reconstruction'][k] for r in class_only]) for k in ('fid', 'recall')}
    matched = '' if rebuilt['fid'] < only['fid_floor'] else \
              f" (ratios {rebuilt['fid']/only['fid']:.2f} and {rebuilt['recall']/only['recall']:.1f})"
    more = ' and their mirror images'*c.get('flips', False) + ', timesteps drawn logit-normally'*(c.get('timesteps') == 'logit_normal')
    head = ['', 'prompts', 'FID (floor)', 'ratio', 'KID (floor)', 'ratio', 'recall (floor)', 'ratio', 'coverage (floor)',
            'precision (floor)', 'adherence (chance)', 'steps']
    return table(head, rows) + ['',
        f"{budget_of(c)} for each model, {c['images']} training images{more}, N = {class_only[0]['n']}, "
        f"seed {', '.join(seeds)}{' (means)'*(len(seeds) > 1)}, {painted(first)}, features `{first['features']}`, {c['device']}. "
        f"Two halves of the reference, N = {first['half_splits']['n']}, have FID {first['half_splits']['fid'][0]:.1f}. "
        f"The reconstruction has FID {rebuilt['fid']:.1f} and recall {rebuilt['recall']:.2f}{matched}: "
        f"training images in their place (the floor) would have ratios {only['fid_floor']/only['fid']:.2f} and "
        f"{only['recall_floor']/only['recall']:.1f}. `{c['command']}`, commit {c['commit']}."]

def summary():
    "The whole model against the class alone, wherever both were measured: means over seeds, and each seed."
    rows = []
    for name, title in SUMMARY.items():
        c = load(f'claim-{name}.json')
        found = [pd.DataFrame([r['prompts']['bank'] for r in c['rows'] if r['method'] == method])
                 for method in ('class', 'class + text + prototypes')]
        seeds = ', '.join(str(r['seed']) for r in c['rows'] if r['method'] == 'class')
        of = lambda k, digits: [f'{r[k].mean():.{digits}f}' for r in found] + [f'{found[0][k + "_floor"].mean():.{digits}f}']
        ratio = lambda k: (f'{found[1][k].mean()/found[0][k].mean():.2f} ('
                           + ', '.join(f'{x:.2f}' for x in found[1][k]/found[0][k]) + ')')
        rows.append([title, budget_of(c), f"{c['rows'][0]['n']}; {seeds}", *of('fid', 1), ratio('fid'), ratio('kid'),
                     ', '.join(of('coverage', 2))])
    head = ['images', 'budget of each model', 'N, seeds', 'FID: class only', 'whole model', 'floor', 'ratio of FID (each seed)',
            'ratio of KID (each seed)', 'coverage: class only, whole model, floor']
    return table(head, rows) + ['',
        'Painted in 10 steps with guidance 2 on phantoms and 1.5 on real images; features: self-supervised networks trained on the '
        'training images of each set, on phantoms for phantoms.']

def bench():
    "Speed against its targets."
    b, rows = load('bench.json'), []
    for r in b['rows']:
        side, missed = 'at least' if r['at_least'] else 'at most', '' if r['met'] else ': **missed**'
        target = '' if r['target'] is None else f"{side} {r['target']:g}{missed}"
        rows.append([r['what'], f"{r['value']:.3g}", target])
    return table(['', 'measured', 'target'], rows) + ['',
        f"`{b['command']}`, medians of {b['runs']} alternating runs, {b['device']}, commit {b['commit']}."]

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
        noises = [torch.Generator().manual_seed(i) for i in range(per_class)]
        images = pipe([label]*per_class, prompts, generator=noises, output_type='uint8').images
        shown[label] = {'real': [p.image for p in phantoms], 'class+text': images, 'prompts': prompts}
    draw_samples(shown, path, titles=dict(real='phantoms'))

if __name__ == '__main__':
    if '--picture' in sys.argv: picture(ROOT/'assets'/'samples.png'); sys.exit()
    for path in PAGES:
        text = path.read_text()
        if '--check' in sys.argv and drawn(text) != text:
            sys.exit(f'{path.relative_to(ROOT)} is behind results/: run `make readme`')
        path.write_text(drawn(text))
