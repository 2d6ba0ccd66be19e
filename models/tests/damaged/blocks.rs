//! A GGUF file that has a matrix of every type of blocks: a llama of one layer, too small to be of use. Its rows are one
//! block of 256 columns or more of 32.

use plimsoll_ops::quant::GgmlType;

const HIDDEN: u64 = 256;
const ALIGNMENT: usize = 32;

/// The matrices' types and rows; of 256 columns.
pub(super) const MATRICES: [(&str, GgmlType, u64); 9] = [
    ("token_embd.weight", GgmlType::Q6K, 33),
    ("output.weight", GgmlType::Q5_1, 33),
    ("blk.0.attn_q.weight", GgmlType::Q4K, 256),
    ("blk.0.attn_k.weight", GgmlType::Q2K, 128),
    ("blk.0.attn_v.weight", GgmlType::Q3K, 128),
    ("blk.0.attn_output.weight", GgmlType::Q5K, 256),
    ("blk.0.ffn_gate.weight", GgmlType::Q4_1, 256),
    ("blk.0.ffn_up.weight", GgmlType::Q5_0, 256),
    ("blk.0.ffn_down.weight", GgmlType::MXFP4, 256),
];
const NORMS: [&str; 3] = ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"];

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key), &kind.to_le_bytes()[..], value].concat()
}

fn pairs() -> Vec<Vec<u8>> {
    let uint = |key: &str, value: u64| pair(&format!("llama.{key}"), 4, &(value as u32).to_le_bytes());
    vec![
        pair("general.architecture", 8, &string("llama")),
        uint("embedding_length", HIDDEN),
        uint("feed_forward_length", 256),
        uint("attention.head_count", 4),
        uint("attention.head_count_kv", 2),
        uint("block_count", 1),
        uint("context_length", 64),
        pair("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
    ]
}

/// The file, and where in it each of [`MATRICES`] begins.
pub(super) fn file() -> (Vec<u8>, Vec<usize>) {
    let (mut table, mut data, mut begins) = (Vec::new(), Vec::new(), Vec::new());
    let norms = NORMS.map(|name| (name, GgmlType::F32, 1));
    for (name, ty, rows) in MATRICES.into_iter().chain(norms) {
        let dimensions = if rows == 1 { vec![HIDDEN] } else { vec![HIDDEN, rows] };
        table.extend(string(name));
        table.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| table.extend(size.to_le_bytes()));
        table.extend(ty.id().to_le_bytes());
        table.extend((data.len() as u64).to_le_bytes());
        begins.push(data.len());
        // Of each type these bytes are small numbers.
        let bytes = rows as usize * ty.row_bytes(HIDDEN as usize).expect("whole blocks");
        data.resize((data.len() + bytes).next_multiple_of(ALIGNMENT), 0x11);
    }
    let pairs = pairs();
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(((MATRICES.len() + NORMS.len()) as u64).to_le_bytes());
    file.extend((pairs.len() as u64).to_le_bytes());
    pairs.iter().for_each(|pair| file.extend(pair));
    file.extend(table);
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    let start = file.len();
    file.extend(data);
    begins.truncate(MATRICES.len());
    (file, begins.into_iter().map(|begin| start + begin).collect())
}
