"""The released model against a second implementation, its files in and out, and files that must be refused."""
import os, pickle, sys
import pytest, torch
from safetensors.torch import save_file
import released_reference
from vap_diffusion import cli
from vap_diffusion.prototype import ReleasedUViT, convert_released

SMALL = dict(side=8, channels=4, patch=2, width=32, pairs=2, words=6, word_width=20, classes=4)
SIZES = [(SMALL, 4),
         (dict(side=3, channels=3, patch=1, width=24, pairs=1, words=3, word_width=8, classes=2), 2),
         (dict(side=8, channels=2, patch=4, width=16, pairs=3, words=5, word_width=12, classes=8), 8)]

@pytest.mark.parametrize('sizes,heads', SIZES)
def test_output_and_loss_are_those_of_the_description(tmp_path, sizes, heads):
    state = released_reference.random_state(seed=heads, **sizes)
    save_file(state, tmp_path/'weights.safetensors')
    model = ReleasedUViT.from_pretrained(convert_released(tmp_path/'weights.safetensors', tmp_path/'out', heads)).train()
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, sizes['channels'], sizes['side'], sizes['side'], generator=g)
    words, t, c = (torch.randn(3, sizes['words'], sizes['word_width'], generator=g), torch.tensor([0, 371, 999]),
                   torch.tensor([0, 1, sizes['classes'] - 1]))
    with torch.no_grad(): found = model(x, t, c, words)
    wanted = [released_reference.run(state, *row, heads) for row in zip(x, t.tolist(), c.tolist(), words)]
    torch.testing.assert_close(found.sample.double(), torch.stack([w for w, _ in wanted]), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(found.recon_loss.double(), torch.stack([l for _, l in wanted]).mean(), atol=1e-5, rtol=1e-4)

def test_a_state_dict_goes_in_and_comes_out_the_same(tmp_path):
    state = released_reference.random_state(**SMALL)
    torch.save(state, tmp_path/'weights.pth')
    model = ReleasedUViT.from_pretrained(convert_released(tmp_path/'weights.pth', tmp_path/'out', 4))
    again = model.state_dict()
    assert set(again) == set(state) and all(torch.equal(again[n], v) for n, v in state.items())
    fresh = ReleasedUViT(**{k: v for k, v in model.config.items() if not k.startswith('_')})
    assert fresh.load_state_dict(state, strict=True).missing_keys == []

def test_the_published_configuration_has_the_published_layout():
    with torch.device('meta'):
        model = ReleasedUViT(sample_size=32, embed_dim=512, depth=16, num_heads=8, text_dim=768, max_text_tokens=256,
                             num_classes=7)
    wanted = released_reference.shapes(side=32, channels=4, patch=2, width=512, pairs=8, words=256, word_width=768, classes=8)
    assert {n: tuple(v.shape) for n, v in model.state_dict().items()} == wanted
    assert 64e6 < sum(v.numel() for v in model.state_dict().values()) < 66e6

class Runs:
    def __reduce__(self): return os.system, ('touch pickled-code-was-run',)

def bad_files(folder):
    "File -> what the one line must say."
    good = released_reference.random_state(**SMALL)
    def torch_file(name, data): torch.save(data, folder/name); return folder/name
    def bytes_file(name, data): (folder/name).write_bytes(data); return folder/name
    whole = (torch_file('whole.pt', good), save_file(good, folder/'whole.safetensors'))[0].read_bytes()
    return {
        folder/'nothing.pt': 'is not there',
        torch_file('code.pt', {'a': Runs()}): 'pickled code',
        torch_file('module.pt', torch.nn.Linear(2, 2)): 'pickled code',
        bytes_file('raw.pt', pickle.dumps({'a': Runs()})): 'pickled code',
        bytes_file('half.pt', whole[:len(whole)//2]): 'no whole torch file',
        bytes_file('empty.pt', b''): 'no whole torch file',
        bytes_file('half.safetensors', (folder/'whole.safetensors').read_bytes()[:5000]): 'no whole safetensors file',
        bytes_file('image.safetensors', b'\x89PNG' + bytes(100)): 'no whole safetensors file',
        torch_file('list.pt', [torch.zeros(2)]): 'no state dict',
        torch_file('nested.pt', {'model': good}): 'no state dict',
        torch_file('other.pt', {'conv.weight': torch.zeros(2, 2)}): 'pos_embed',
        torch_file('less.pt', {n: v for n, v in good.items() if n != 'Q_former.z1.weight'}): 'missing 1 (Q_former.z1.weight)',
        torch_file('more.pt', good | {'Q_former.z1.bias': torch.zeros(32)}): 'unknown 1 (Q_former.z1.bias)',
        torch_file('shape.pt', good | {'q.weight': torch.zeros(32, 31)}): 'q.weight (32, 31) for (32, 32)',
        torch_file('memory.pt', good | {'prototype.weight': torch.zeros(4, 30*32)}): '30 prototypes',
        torch_file('flat.pt', good | {'pos_embed': torch.zeros(513)}): 'pos_embed (513,)',
    }

def test_bad_files_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, words in bad_files(tmp_path).items():
        with pytest.raises((ValueError, OSError)) as e: convert_released(file, tmp_path/'out', 4)
        assert words in str(e.value) and file.name in str(e.value) and '\n' not in str(e.value), (file.name, str(e.value))
    assert not (tmp_path/'out').exists() and not (tmp_path/'pickled-code-was-run').exists()

def test_convert_on_the_command_line(tmp_path, monkeypatch, capsys):
    "In this process: importing torch anew for each command would take longer than all else here."
    def run(*args): # -> exit code, what it said
        monkeypatch.setattr(sys, 'argv', ['vap-diffusion', 'convert', *map(str, args)])
        with pytest.raises(SystemExit) as e: cli.main()
        said = capsys.readouterr()
        return e.value.code, said.out, [l for l in said.err.splitlines() if l.startswith('error: ')]
    save_file(released_reference.random_state(**SMALL), tmp_path/'w.safetensors')
    code, out, errors = run(tmp_path/'w.safetensors', '--out', tmp_path/'out', '--heads', 4)
    assert ((code, errors) == (0, []) and sorted(p.name for p in (tmp_path/'out').iterdir())
            == ['config.json', 'diffusion_pytorch_model.safetensors'] and '8 x 8' in out)
    torch.save({'a': Runs()}, tmp_path/'code.pt')
    for args, words in [(('w.safetensors', 'out', 4), 'in use'), (('w.safetensors', 'new', 5), 'num_heads'),
                        (('code.pt', 'new', 8), 'pickled code')]:
        code, out, errors = run(tmp_path/args[0], '--out', tmp_path/args[1], '--heads', args[2])
        assert code == 1 and len(errors) == 1 and words in errors[0], (args, errors)
    assert not (tmp_path/'new').exists()
    save_file(released_reference.random_state(**SMALL | dict(channels=8, words=64, word_width=128)), tmp_path/'whole.safetensors')
    parts = ('--heads', 4, '--classes', 'nevus, melanoma, keratosis', '--autoencoder', 'course', '--text-encoder', 'course')
    code, out, errors = run(tmp_path/'whole.safetensors', '--out', tmp_path/'pipe', *parts)
    assert (code, errors) == (0, []) and '--label nevus' in out and (tmp_path/'pipe'/'model_index.json').exists()
    code, out, errors = run(tmp_path/'whole.safetensors', '--out', tmp_path/'two', '--heads', 4, '--classes', 'nevus,melanoma', *parts[4:])
    assert code == 1 and '3 classes, the list 2' in errors[0] and not (tmp_path/'two').exists()

def test_converted_weights_paint(tmp_path):
    "With other parts in the place of Stable Diffusion's autoencoder and BiomedCLIP, which a network would bring."
    from vap_diffusion.pipeline import load_pipeline, released_pipeline, sample
    save_file(released_reference.random_state(**SMALL | dict(channels=8, words=64, word_width=128)), tmp_path/'weights.safetensors')
    folder, names = convert_released(tmp_path/'weights.safetensors', tmp_path/'model', 4), ['nevus', 'melanoma', 'keratosis']
    released_pipeline(folder, names, 'course', 'course').save_pretrained(tmp_path/'pipeline')
    pipe = load_pipeline(tmp_path/'pipeline')
    assert (type(pipe.uvit) is ReleasedUViT
            and len(sample(pipe, tmp_path/'s', 3, prompt='round brown lesion', num_inference_steps=2, progress=False)) == 3)
    with pytest.raises(ValueError, match='no prompt bank'): pipe('nevus')
    states, mask = pipe.states(['round brown lesion', ''])                    # padding takes part: 64 tokens for each text, none of them 0
    assert mask is None and states.shape == (2, 64, 128) and (states != 0).any(-1).all() and not torch.allclose(states[0], states[1])
    x, t, index = torch.randn(2, 8, 8, 8), torch.tensor(500), torch.tensor([0, 1])
    null = pipe.states(['', ''])[0]
    with torch.no_grad():
        cond, other = pipe.uvit(x, t, index, states).sample, pipe.uvit(x, t, torch.tensor([3, 3]), null).sample
        for pipe.one_pass in (False, True):
            torch.testing.assert_close(pipe.answer(x, t, index, states, None, 3., null=null), other + 3*(cond - other),
                                       atol=1e-4, rtol=1e-4)
    save_file(released_reference.random_state(**SMALL | dict(channels=8)), tmp_path/'narrow.safetensors')
    with pytest.raises(ValueError, match='course has 128 numbers a word, .* trained on 20'):
        released_pipeline(convert_released(tmp_path/'narrow.safetensors', tmp_path/'narrow', 4), names, 'course', 'course')
