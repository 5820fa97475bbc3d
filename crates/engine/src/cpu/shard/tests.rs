use std::path::{Path, PathBuf};

use gqla_weights::{CheckpointWriter, Dtype, Sidecars, TensorSpec};

use super::*;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a").join(name)
}

/// Writes a converted model of one layer with random weights.
pub fn write_model(dir: &Path, heads: u32, groups: u32) -> Checkpoint {
    let mut config = Checkpoint::open(&fixture("llama_gqla_a")).unwrap().config().clone();
    let AttentionConfig::Latent { shape, .. } = &mut config.attention else { panic!("a converted model") };
    (shape.num_attention_heads, shape.num_key_value_heads) = (heads, groups);
    let (shape, hidden, inner) = (*shape, config.hidden_size, config.intermediate_size);
    config.num_hidden_layers = 1;
    let [heads, groups, nope, rope, value, rank] =
        [heads, groups, shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim, shape.kv_lora_rank]
            .map(|dim| dim as usize);
    let layer = [
        ("input_layernorm", vec![hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![heads * (nope + rope), hidden]),
        ("self_attn.kv_a_proj_with_mqa", vec![rank + rope, hidden]),
        ("self_attn.kv_b_proj", vec![groups * (nope + value), rank]),
        ("self_attn.o_proj", vec![hidden, heads * value]),
        ("mlp.gate_proj", vec![inner, hidden]),
        ("mlp.up_proj", vec![inner, hidden]),
        ("mlp.down_proj", vec![hidden, inner]),
    ];
    let vocabulary = vec![config.vocab_size, hidden];
    let ends = [
        ("model.embed_tokens.weight", vocabulary.clone()),
        ("model.norm.weight", vec![hidden]),
        ("lm_head.weight", vocabulary),
    ];
    let spec = |name: String, shape| TensorSpec { name, dtype: Dtype::F32, shape };
    let specs: Vec<_> = layer
        .into_iter()
        .map(|(name, shape)| spec(format!("model.layers.0.{name}.weight"), shape))
        .chain(ends.into_iter().map(|(name, shape)| spec(name.to_owned(), shape)))
        .collect();
    let mut writer = CheckpointWriter::create(dir, specs.clone()).unwrap();
    for (seed, spec) in specs.iter().enumerate() {
        let len = spec.shape.iter().product();
        let values: Vec<f32> = gqla_kernels::reference::counter_noise(seed as u64, len, 0.3)
            .map(|x| x as f32 + if spec.shape.len() == 1 { 1.0 } else { 0.0 })
            .collect();
        writer.write(&spec.name, &values).unwrap();
    }
    let config = config.to_json(Dtype::F32);
    writer.finish(&Sidecars { config: &config, tokenizer: None, chat_template: None }).unwrap();
    Checkpoint::open(dir).unwrap()
}

fn shards(checkpoint: &Checkpoint, path: DecodePath, world: usize) -> Vec<Shard<'_>> {
    (0..world).map(|rank| Shard::new(checkpoint, path, Rank { rank, world }).unwrap()).collect()
}

#[test]
fn shares_cover_everything_once_and_differ_by_at_most_one() {
    for (total, world) in [(224, 8), (7, 3), (512, 5), (3, 3), (1, 1)] {
        let shares: Vec<_> = (0..world).map(|rank| Rank { rank, world }.share(total)).collect();
        assert_eq!(shares.iter().map(Range::len).sum::<usize>(), total);
        assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(shares.iter().all(|share| (total / world..=total.div_ceil(world)).contains(&share.len())));
    }
}

#[test]
fn ranks_have_whole_groups_or_the_group_their_heads_share() {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    for (world, groups) in [
        (1, vec![vec![0, 1]]),
        (2, vec![vec![0], vec![1]]),
        (4, vec![vec![0], vec![0], vec![1], vec![1]]),
        (8, [0, 0, 0, 0, 1, 1, 1, 1].map(|group| vec![group]).to_vec()),
    ] {
        for path in DecodePath::ALL {
            let own: Vec<_> = shards(&checkpoint, path, world).iter().map(|shard| shard.groups(2)).collect();
            assert_eq!(own, groups, "{world} {path}");
        }
    }
}

#[test]
fn absorbing_ranks_may_cut_a_group() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_model(dir.path(), 6, 2);
    let groups: Vec<_> = shards(&checkpoint, DecodePath::MqaAbsorb, 3).iter().map(|s| s.groups(0)).collect();
    assert_eq!(groups, [vec![0, 0], vec![0, 1], vec![1, 1]]);
}

#[test]
fn what_cannot_be_divided_is_refused_with_the_arithmetic() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |heads, groups, path, world| {
        let dir = dir.path().join(format!("{heads}-{groups}-{path}"));
        let checkpoint = write_model(&dir, heads, groups);
        Shard::new(&checkpoint, path, Rank { rank: 0, world }).err().unwrap().to_string()
    };
    assert_eq!(
        refusal(20, 4, DecodePath::Gqa, 8),
        "tensorParallel=8 does not divide numAttentionHeads=20 (20 mod 8 = 4); choose another tensor-parallel degree"
    );
    let error = refusal(6, 2, DecodePath::Gqa, 3);
    assert!(error.contains("a rank would hold part of a group"), "{error}");
    let error = refusal(1000, 1, DecodePath::MqaAbsorb, 500);
    assert!(error.contains("tensorParallel=500 and intermediate_size=224"), "{error}");
}

/// On every rank norms, down-projections, routers and what joins a prediction layer to the decoder; all the rest once.
#[test]
fn a_rank_reads_its_part_and_what_every_rank_needs() {
    for name in ["llama_gqla_a", "llama_untied", "../glm_a/gqla", "../glm_a/mla"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        // A prediction layer may bring copies of the embedding and the head, which nobody reads.
        let copy = |name: &str| name.contains("shared_head.head") || name.ends_with("4.embed_tokens.weight");
        let names: Vec<String> = checkpoint.names().filter(|name| !copy(name)).map(str::to_owned).collect();
        let bytes = |wanted: &dyn Fn(&str) -> bool| -> u64 {
            let wanted = names.iter().filter(|name| wanted(name));
            wanted.map(|name| checkpoint.tensor(name).unwrap().bytes().len() as u64).sum()
        };
        let everywhere = ["norm", "kv_a_proj", "q_a_proj", "mlp.gate.", "eh_proj"];
        let common = |name: &str| everywhere.iter().any(|part| name.contains(part));
        let (all, common) = (bytes(&|_| true), bytes(&common));
        for world in [1, 2, if name.contains("glm") { 4 } else { 2 }] {
            let read: u64 = shards(&checkpoint, DecodePath::Gqa, world)
                .iter()
                .map(|shard| {
                    for name in &names {
                        match name.split_once(".mlp.experts.") {
                            None => drop(shard.tensor(name).unwrap()),
                            Some((layer, expert)) if expert.ends_with(".down_proj.weight") => {
                                let layer = layer.strip_prefix("model.layers.").unwrap().parse().unwrap();
                                let expert = expert.split_once('.').unwrap().0.parse().unwrap();
                                drop(shard.expert(layer, expert).unwrap());
                            }
                            Some(_) => {}
                        }
                    }
                    shard.bytes_read()
                })
                .sum();
            assert_eq!(read, all + (world as u64 - 1) * common, "{name} {world}");
        }
    }
}

#[test]
fn a_rank_of_a_mixture_has_columns_of_every_expert() {
    let checkpoint = Checkpoint::open(&fixture("../glm_a/gqla")).unwrap();
    let whole = checkpoint.expert(1, 3).unwrap();
    let experts = checkpoint.config().experts.unwrap();
    let (inner, hidden) = (experts.moe_intermediate_size as usize, checkpoint.config().hidden_size);
    let mut down = vec![Vec::<f32>::new(); hidden];
    let mut gate = Vec::<f32>::new();
    for shard in shards(&checkpoint, DecodePath::Gqa, 4) {
        let part = shard.expert(1, 3).unwrap();
        let own = shard.config().experts.unwrap().moe_intermediate_size as usize;
        assert_eq!((own, part.gate_up.len(), part.down.shape.as_slice()), (inner / 4, 2, &[hidden, own][..]));
        gate.extend(part.gate_up[0].to_f32());
        let rows = part.down.to_f32();
        down.iter_mut().zip(rows.chunks_exact(own)).for_each(|(row, part)| row.extend(part));
        assert_eq!(shard.groups_of_layer(1), Some(1));
    }
    assert_eq!(gate, whole.gate_up[0].to_f32());
    assert_eq!(down.concat(), whole.down.to_f32());
}
