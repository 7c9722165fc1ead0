"""Text encoders beside the course's: BiomedCLIP from a hub cache without a network, towers of every kind, folders that are broken.

All models are tiny and random, in the layouts of the real ones, and are built on disk here."""
import json, os, random, shutil, subprocess, sys, warnings
from pathlib import Path
import open_clip, pytest, torch
from transformers import AutoConfig, BertConfig
from vap_diffusion.text import BIOMEDCLIP, TextEncoder, clip_tokenizer, load_text_encoder
from conftest import message

BERT = 'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract'
WORDS = 'brown lesion round dark skin with areas border sharp soft texture pale'.split()
TEXTS = ['Round brown lesion, with dark areas; sharp border.', 'pale   skin', 'Caf\u00e9-au-lait \u201cspots\u201d &amp; 3 dark areas!']

def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')

def write_bert(folder):
    "Configuration and vocabulary of a tiny BERT, as in the hub repository: no weights."
    config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=512)
    write(folder/'config.json', config.to_diff_dict())
    letters = list('abcdefghijklmnopqrstuvwxyz0123456789')
    vocab = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *',.;-&!"', *WORDS, *letters, *('##' + l for l in letters)]
    write(folder/'vocab.txt', '\n'.join(vocab[:100]) + '\n')
    write(folder/'tokenizer_config.json', dict(do_lower_case=True, model_max_length=10**15))
    return folder

def write_tokenizer(folder):
    "The tokenizer of the tiny BERT alone."
    write_bert(folder); (folder/'config.json').unlink()
    write(folder/'tokenizer_config.json', dict(do_lower_case=True, tokenizer_class='BertTokenizer'))
    return folder

def write_clip(folder, text_cfg, bert=None, weights='open_clip_pytorch_model.bin', **more):
    "An open_clip repository with a timm image tower and random weights; the weights saved by PyTorch, as BiomedCLIP's are."
    cfg = dict(embed_dim=16, vision_cfg=dict(timm_model_name='test_vit', timm_model_pretrained=False, timm_pool='',
                                             timm_proj='linear', image_size=160), text_cfg=text_cfg, **more)
    write(folder/'open_clip_config.json', dict(model_cfg=cfg, preprocess_cfg=dict(mean=[.48, .46, .41], std=[.27, .26, .28])))
    torch.manual_seed(0)
    made = {k: v for k, v in cfg.items() if k != 'custom_text'} | dict(
        text_cfg=text_cfg | (dict(hf_model_name=str(bert), hf_model_pretrained=False) if bert else {}))
    torch.save(open_clip.model.CustomTextCLIP(**made).state_dict(), folder/weights)
    return folder

def biomedclip(folder, bert):
    "BiomedCLIP's layout and settings, small."
    return write_clip(folder, dict(hf_model_name=BERT, hf_tokenizer_name=BERT, hf_proj_type='mlp',
                                   hf_pooler_type='cls_last_hidden_state_pooler', context_length=256), bert)

def into_cache(hub, repo, folder):
    "Put a folder into a hub cache, in the cache's own layout."
    root, commit = hub/f'models--{repo.replace("/", "--")}', f'{len(repo):040x}'
    write(root/'refs'/'main', commit)
    for p in folder.iterdir():
        (root/'blobs').mkdir(exist_ok=True); shutil.copy(p, root/'blobs'/p.name)
        (root/'snapshots'/commit).mkdir(parents=True, exist_ok=True)
        (root/'snapshots'/commit/p.name).symlink_to(Path('../../blobs')/p.name)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "The two folders of a small BiomedCLIP beside each other."
    root = tmp_path_factory.mktemp('made')
    return biomedclip(root/'BiomedCLIP', write_bert(root/Path(BERT).name))

def states_by_open_clip(model, tokenizer, texts):
    "What the text tower of open_clip gives for texts padded to the context: B L D."
    model.eval().text.output_tokens = True
    with torch.no_grad(): return model.text(tokenizer(texts))[1]

# --- BiomedCLIP ------------------------------------------------------------------------------------------------------

CACHED = '''
import json, sys, torch, open_clip, vap_diffusion.text as t
texts = json.loads(sys.argv[1])
model, _ = open_clip.create_model_from_pretrained('hf-hub:' + t.BIOMEDCLIP)     # open_clip's own way, as its card says
tokenizer = open_clip.get_tokenizer('hf-hub:' + t.BIOMEDCLIP)
model.text.output_tokens = True
ids = tokenizer(texts)
with torch.no_grad(): pooled, tokens = model.eval().text(ids)
encoder = t.load_text_encoder('biomedclip')
states, mask = encoder.encode(texts)
assert ids.shape[1] == encoder.context_length == 256 and encoder.width == tokens.shape[2]
assert mask.sum(1).tolist() == (ids != 0).sum(1).tolist() and mask.shape[1] == mask.sum(1).max() < 256
torch.testing.assert_close(states[mask], tokens[ids != 0])
torch.testing.assert_close(model.text.proj(states[:, 0]), pooled)
assert encoder.fingerprint == t.load_text_encoder('hf-hub:' + t.BIOMEDCLIP).fingerprint
print('fingerprint', encoder.fingerprint)
'''

def run_with_cache(hf_home, code, *args):
    return subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, timeout=300,
                          env=os.environ | dict(HF_HOME=str(hf_home), HF_HUB_OFFLINE='1', HF_HUB_CACHE=str(hf_home/'hub'),
                                                https_proxy='http://127.0.0.1:9', http_proxy='http://127.0.0.1:9'))

def test_biomedclip_from_a_cache_without_a_network(made, tmp_path):
    into_cache(tmp_path/'hub', BIOMEDCLIP, made); into_cache(tmp_path/'hub', BERT, made.parent/Path(BERT).name)
    done = run_with_cache(tmp_path, CACHED, json.dumps(TEXTS))
    assert done.returncode == 0, done.stderr
    assert f'fingerprint {load_text_encoder(made).fingerprint}' in done.stdout  # the folders are the same encoder

def test_one_repository_of_two_is_not_enough(made, tmp_path):
    into_cache(tmp_path/'hub', BIOMEDCLIP, made)
    done = run_with_cache(tmp_path, 'import vap_diffusion.text as t\ntry: t.load_text_encoder("biomedclip")\n'
                                    'except OSError as e: print(e)')
    assert f'hf download {BERT}' in done.stdout and 'beside' in done.stdout, done.stderr

@pytest.mark.parametrize('place', ['inside', 'beside', 'path', 'own tokenizer'])
def test_two_folders(made, tmp_path, place):
    bert = made.parent/Path(BERT).name
    clip = shutil.copytree(made, tmp_path/'clip')
    if place == 'inside': shutil.copytree(bert, clip/bert.name)
    if place in ('beside', 'own tokenizer'): shutil.copytree(bert, tmp_path/bert.name)
    if place == 'own tokenizer':                                            # BiomedCLIP's repository holds the vocabulary as well
        for f in ('vocab.txt', 'tokenizer_config.json'): shutil.move(tmp_path/bert.name/f, clip/f)
        write(clip/'tokenizer_config.json', dict(do_lower_case=True, tokenizer_class='BertTokenizer'))
    if place == 'path':
        config = json.loads((clip/'open_clip_config.json').read_text())
        config['model_cfg']['text_cfg']['hf_model_name'] = str(bert)
        write(clip/'open_clip_config.json', config)
    torch.testing.assert_close(load_text_encoder(clip).encode(TEXTS)[0], load_text_encoder(made).encode(TEXTS)[0])

def test_all_256_tokens(made):
    encoder, config = load_text_encoder(made), dict(force_custom_text=True)
    text_cfg = json.loads((made/'open_clip_config.json').read_text())['model_cfg']['text_cfg'] | dict(
        hf_model_name=str(made.parent/Path(BERT).name), hf_model_pretrained=False)
    model = open_clip.create_model(f'local-dir:{made}', require_pretrained=True, text_cfg=text_cfg, **config)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(made.parent/Path(BERT).name), context_length=256)
    full = ' '.join(random.Random(0).choices(WORDS, k=254))                # with [CLS] and [SEP] it just fits
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        states, mask = encoder.encode([full, 'pale skin'])
    assert mask.sum(1).tolist() == [256, 4]
    theirs = states_by_open_clip(model, tokenizer, [full, 'pale skin'])
    torch.testing.assert_close(states[0], theirs[0]); torch.testing.assert_close(states[1, :4], theirs[1, :4])
    with pytest.warns(UserWarning, match='longer than the 256 tokens'): kept, _ = encoder.encode([full + ', and more'])
    torch.testing.assert_close(kept[0], theirs[0])                          # what did not fit was cut, no more

# --- every other kind of tower ---------------------------------------------------------------------------------------

NATIVE = dict(context_length=48, width=32, heads=2, layers=2)
SIGLIP = NATIVE | dict(vocab_size=100, hf_tokenizer_name='tokenizer', no_causal_mask=True, proj_bias=True,
                       pool_type='last', norm_kwargs=dict(eps=1e-6),
                       act_kwargs=dict(approximate='tanh'), mlp_ratio=3.0, tokenizer_kwargs=dict(clean='canonicalize'))
TOWERS = dict(clip=(NATIVE, dict(quick_gelu=True)),
              canonical=(NATIVE | dict(tokenizer_kwargs=dict(clean='canonicalize')), {}),
              mobileclip=(NATIVE | dict(no_causal_mask=True), {}), siglip=(SIGLIP, {}),
              clipa=(SIGLIP | dict(tokenizer_kwargs=dict(strip_sep_token=True), act_kwargs=None), {}),
              qknorm=(NATIVE | dict(qk_norm=True, scale_attn=True), {}))

@pytest.mark.parametrize('kind', TOWERS)
def test_native_towers(tmp_path, kind):
    "States as open_clip's own on padded texts; kept over the disk; another tower, another fingerprint."
    text_cfg, more = TOWERS[kind]
    folder = write_clip(tmp_path/'clip', {k: v for k, v in text_cfg.items() if v is not None}, custom_text=True, **more)
    if 'hf_tokenizer_name' in text_cfg: write_tokenizer(folder)
    encoder = load_text_encoder(folder)
    states, mask = encoder.encode(TEXTS)
    model, tokenizer = (open_clip.create_model(f'local-dir:{folder}', require_pretrained=True),
                        open_clip.get_tokenizer(f'local-dir:{folder}'))
    theirs = states_by_open_clip(model, tokenizer, TEXTS)
    assert mask.shape[1] < encoder.context_length == 48                     # no padding
    torch.testing.assert_close(states[mask], theirs[:, :mask.shape[1]][mask])
    torch.testing.assert_close(encoder.encode(TEXTS[1:2])[0], states[1:2, :mask[1].sum()])
    encoder.save_pretrained(tmp_path/'saved'); again = load_text_encoder(tmp_path/'saved')
    torch.testing.assert_close(again.encode(TEXTS)[0], states); assert again.fingerprint == encoder.fingerprint

def test_fingerprint_sees_how_tokens_are_made(tmp_path):
    folder = write_tokenizer(write_clip(tmp_path/'clip', SIGLIP, custom_text=True))
    first, config = load_text_encoder(folder).fingerprint, json.loads((folder/'open_clip_config.json').read_text())
    config['model_cfg']['text_cfg']['tokenizer_kwargs'] = dict(clean='lower')
    write(folder/'open_clip_config.json', config)
    assert load_text_encoder(folder).fingerprint != first

def test_clip_tokenizer_is_open_clips():
    ours, theirs, rng = clip_tokenizer(), open_clip.tokenizer.SimpleTokenizer(), random.Random(0)
    clean = open_clip.tokenizer.get_clean_fn('lower')
    alphabet = list('abcdefgXYZ 0123456789 .,;:!?-_()/%\'"&<>#@\t\n') + [
        '\u00e9', '\u00fc', '\u00df', '\u03bc', '\u00d7', '\u2264', '\u76ae', '\U0001f9ea',
        "'s", ' the ', ' lesion ', "don't"]
    texts = [''.join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(500)] + TEXTS
    for t in texts: assert ours(clean(t)).input_ids == [theirs.sot_token_id, *theirs.encode(t), theirs.eot_token_id], repr(t)

@pytest.mark.parametrize('kind', ['roberta', 'mt5'])
def test_hf_towers(tmp_path, kind):
    "A tower with a pooler of its own (which we do not need), and the encoder of an encoder-decoder."
    bert = write_bert(tmp_path/'text-tower')
    small = dict(vocab_size=100, num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=64, pad_token_id=0)
    config = (AutoConfig.for_model('xlm-roberta', **small, max_position_embeddings=64) if kind == 'roberta' else
              AutoConfig.for_model('mt5', vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2))
    write(bert/'config.json', config.to_diff_dict() | dict(model_type=config.model_type))
    write(bert/'tokenizer_config.json', dict(do_lower_case=True, tokenizer_class='BertTokenizer'))
    text_cfg = dict(hf_model_name='someone/text-tower', hf_tokenizer_name='someone/text-tower', hf_proj_type='mlp',
                    hf_pooler_type='cls_pooler' if kind == 'roberta' else 'mean_pooler', context_length=32)
    folder = write_clip(tmp_path/'clip', text_cfg, bert)
    encoder = load_text_encoder(folder)
    states, mask = encoder.encode(TEXTS[:2])
    model = open_clip.create_model(f'local-dir:{folder}', require_pretrained=True,
                                   text_cfg=text_cfg | dict(hf_model_name=str(bert), hf_model_pretrained=False))
    ids = open_clip.tokenizer.HFTokenizer(str(bert), context_length=32)(TEXTS[:2])
    with torch.no_grad():
        theirs = model.eval().text.transformer(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(states[mask], theirs[:, :mask.shape[1]][mask])
    assert not any('pooler' in k or 'decoder' in k for k in encoder.state_dict())
    encoder.save_pretrained(tmp_path/'saved')
    torch.testing.assert_close(load_text_encoder(tmp_path/'saved').encode(TEXTS[:2])[0], states)

@pytest.fixture
def tiny_name(tmp_path, monkeypatch):
    "A built-in model 'tiny-CLIP' of open_clip, and its weights."
    folder = write_clip(tmp_path/'clip', NATIVE, custom_text=True, weights='weights.pt')
    write(tmp_path/'configs'/'tiny-CLIP.json', json.loads((folder/'open_clip_config.json').read_text())['model_cfg'])
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIGS', dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIG_PATHS', list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path/'configs')
    return folder/'weights.pt'

def test_by_name(tiny_name, tmp_path, monkeypatch):
    encoder = load_text_encoder(f'open_clip:tiny-CLIP@{tiny_name}')
    model, tokenizer = open_clip.create_model('tiny-CLIP', pretrained=str(tiny_name)), open_clip.get_tokenizer('tiny-CLIP')
    states, mask = encoder.encode(TEXTS)
    torch.testing.assert_close(states[mask], states_by_open_clip(model, tokenizer, TEXTS)[:, :mask.shape[1]][mask])
    (tmp_path/'repo').mkdir(); shutil.copy(tiny_name, tmp_path/'repo'/'open_clip_pytorch_model.bin')
    into_cache(tmp_path/'hub', 'someone/tiny', tmp_path/'repo')             # a tag: its weights lie in the hub's cache
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-CLIP', dict(small=dict(hf_hub='someone/tiny/')))
    assert load_text_encoder('open_clip:tiny-CLIP@small').fingerprint == encoder.fingerprint
    assert "TAG one of small" in message(ValueError, lambda: load_text_encoder('open_clip:tiny-CLIP@big'))
    assert "TAG one of small" in message(ValueError, lambda: load_text_encoder('open_clip:tiny-CLIP'))
    assert 'tiny-CLIP' in message(ValueError, lambda: load_text_encoder('open_clip:tiny-CLYP@small'))
    shutil.rmtree(tmp_path/'hub')
    assert 'HF_HOME' in message(OSError, lambda: load_text_encoder('open_clip:tiny-CLIP@small'))

# --- what is broken --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ['no weights', 'torn weights', 'garbage', 'other weights', 'no json', 'no model_cfg',
                                  'strange tokenizer', 'capitals'])
def test_broken_folders(made, tmp_path, kind):
    clip = shutil.copytree(made, tmp_path/'BiomedCLIP')
    shutil.copytree(made.parent/Path(BERT).name, tmp_path/Path(BERT).name)
    weights, config = clip/'open_clip_pytorch_model.bin', json.loads((clip/'open_clip_config.json').read_text())
    if kind == 'no weights': weights.unlink()
    if kind == 'torn weights': weights.write_bytes(weights.read_bytes()[:5000])
    if kind == 'garbage': weights.write_bytes(b'garbage'*99)
    if kind == 'other weights': torch.save(dict(a=torch.zeros(1)), weights)
    if kind == 'no json': write(clip/'open_clip_config.json', '{"model_cfg"')
    if kind == 'no model_cfg': write(clip/'open_clip_config.json', {})
    if kind == 'strange tokenizer':
        config['model_cfg']['text_cfg']['tokenizer_mode'] = 'clips'
        write(clip/'open_clip_config.json', config)
    if kind == 'capitals':
        clip = write_clip(tmp_path/'capitals', NATIVE | dict(tokenizer_kwargs=dict(clean='whitespace')), custom_text=True)
    text = message(ValueError, lambda: load_text_encoder(clip))
    assert str(clip) in text and (dict([('strange tokenizer', 'clips'), ('capitals', 'capitals')])[kind] in text
                                  if kind in ('strange tokenizer', 'capitals') else 'fetch the folder again' in text), text

def test_the_course_encoder_is_the_shipped_one():
    "Features and models that were made with it depend on this number."
    from vap_diffusion.phantoms import asset_path
    recorded = json.loads(asset_path('text', 'config.json').read_text())['fingerprint']
    assert (load_text_encoder('course').fingerprint
            == TextEncoder.from_pretrained(asset_path('course')/'text_encoder').fingerprint == recorded)
    assert (load_text_encoder('course').fingerprint
            == json.loads((asset_path('course')/'model_index.json').read_text())['text_fingerprint'])

@pytest.mark.parametrize('text', ['é'*100, '😀'*60, 'a round brown lesion ≈ '*30, '圆形棕色病变位于图像中央边界清晰'*20])
def test_a_cut_does_not_fall_inside_a_character(text):
    encoder = load_text_encoder('course')
    with pytest.warns(UserWarning, match='longer than'): states, mask = encoder.encode([text])
    assert 0 < mask.sum() == states.shape[1] <= encoder.context_length

def test_another_models_folder_is_named(tmp_path):
    write_bert(tmp_path/'bert')
    assert 'not a TextEncoder' in message(ValueError, lambda: load_text_encoder(tmp_path/'bert'))

def test_a_text_that_does_not_fit_in_the_padding_is_not_cut():
    with pytest.raises(ValueError, match='does not fit in pad_to=2'):
        load_text_encoder('course').encode(['large irregular black lesion'], pad_to=2)

def test_each_text_that_is_cut_is_reported_once():
    from vap_diffusion.text import load_text_encoder
    encoder, long = load_text_encoder('course'), [f'round brown lesion number {i}, '*30 for i in (1, 2)]
    for text in long:
        with pytest.warns(UserWarning, match='1 of 1 prompts'): encoder.encode([text])
        with warnings.catch_warnings():
            warnings.simplefilter('error'); encoder.encode([text])
