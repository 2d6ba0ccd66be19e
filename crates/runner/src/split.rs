//! A step in two: for a GPU whose memory does not hold the activations of the whole, and for logits that are too many
//! to stand at once.

use plimsoll_nn::ForwardBatch;
use plimsoll_ops::attention::PagedBatch;

/// The first `tokens` tokens of a batch, and the others. A sequence that the cut goes through is in both, and the second
/// part sees what the first one wrote. `None` where there is nothing to part.
pub(crate) fn split(batch: &ForwardBatch, tokens: usize) -> Option<(ForwardBatch, ForwardBatch)> {
    if tokens == 0 || tokens >= batch.input_ids.len() {
        return None;
    }
    let (first_ids, last_ids) = batch.input_ids.split_at(tokens);
    let (first_positions, last_positions) = batch.positions.split_at(tokens);
    let (first_rows, last_rows): (Vec<u32>, Vec<u32>) = batch.logit_rows.iter().partition(|&&row| row < tokens as u32);
    let (first_groups, last_groups) = batch.groups.iter().map(|group| split_group(group, tokens as u32)).unzip();
    let first = ForwardBatch {
        input_ids: first_ids.to_vec(),
        positions: first_positions.to_vec(),
        groups: first_groups,
        logit_rows: first_rows,
        on_device: None,
    };
    let last = ForwardBatch {
        input_ids: last_ids.to_vec(),
        positions: last_positions.to_vec(),
        groups: last_groups,
        logit_rows: last_rows.into_iter().map(|row| row - tokens as u32).collect(),
        on_device: None,
    };
    Some((first, last))
}

fn split_group(group: &PagedBatch, tokens: u32) -> (PagedBatch, PagedBatch) {
    let part = || PagedBatch {
        block_size: group.block_size,
        cu_seqlens: vec![0],
        block_offsets: vec![0],
        ..PagedBatch::default()
    };
    let (mut first, mut last) = (part(), part());
    for seq in 0..group.num_seqs() {
        let (begin, end) = (group.cu_seqlens[seq], group.cu_seqlens[seq + 1]);
        let cut = tokens.clamp(begin, end);
        if begin < cut {
            push(&mut first, group, seq, cut - begin, group.seq_lens[seq] - (end - cut));
        }
        if cut < end {
            push(&mut last, group, seq, end - cut, group.seq_lens[seq]);
        }
    }
    let (slots, others) = group.slot_mapping.split_at(tokens as usize);
    first.slot_mapping = slots.to_vec();
    last.slot_mapping = others.to_vec();
    (first, last)
}

/// Adds `tokens` query tokens of a sequence, the last at position `seq_len - 1`.
fn push(to: &mut PagedBatch, from: &PagedBatch, seq: usize, tokens: u32, seq_len: u32) {
    let blocks = &from.blocks[from.block_offsets[seq] as usize..from.block_offsets[seq + 1] as usize];
    to.cu_seqlens.push(to.cu_seqlens[to.cu_seqlens.len() - 1] + tokens);
    to.seq_lens.push(seq_len);
    to.blocks.extend(blocks);
    to.block_offsets.push(to.blocks.len() as u32);
    to.first_block.push(from.first_block[seq]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> ForwardBatch {
        let group = PagedBatch {
            block_size: 4,
            cu_seqlens: vec![0, 1, 4, 6],
            seq_lens: vec![9, 3, 8],
            block_offsets: vec![0, 3, 4, 6],
            blocks: vec![7, 8, 9, 1, 4, 5],
            first_block: vec![0, 0, 0],
            slot_mapping: vec![36, 4, 5, 6, 22, 23],
            on_device: None,
        };
        ForwardBatch {
            input_ids: (10..16).collect(),
            positions: vec![8, 0, 1, 2, 6, 7],
            groups: vec![group],
            logit_rows: vec![0, 3, 5],
            on_device: None,
        }
    }

    #[test]
    fn a_cut_between_sequences_parts_them() {
        let (first, last) = split(&batch(), 4).unwrap();
        assert_eq!((first.input_ids, last.input_ids), (vec![10, 11, 12, 13], vec![14, 15]));
        assert_eq!((first.logit_rows, last.logit_rows), (vec![0, 3], vec![1]));
        let (first, last) = (&first.groups[0], &last.groups[0]);
        assert_eq!((&first.seq_lens, &last.seq_lens), (&vec![9, 3], &vec![8]));
        assert_eq!((&first.blocks, &last.blocks), (&vec![7, 8, 9, 1], &vec![4, 5]));
        assert_eq!(last.slot_mapping, [22, 23]);
    }

    #[test]
    fn a_cut_through_a_sequence_leaves_it_in_both_parts() {
        let (first, last) = split(&batch(), 2).unwrap();
        assert_eq!((&first.logit_rows, &last.logit_rows), (&vec![0], &vec![1, 3]));
        let (first, last) = (&first.groups[0], &last.groups[0]);
        assert_eq!((&first.cu_seqlens, &first.seq_lens), (&vec![0, 1, 2], &vec![9, 1]));
        assert_eq!((&last.cu_seqlens, &last.seq_lens), (&vec![0, 2, 4], &vec![3, 8]));
        assert_eq!((&first.blocks, &last.blocks), (&vec![7, 8, 9, 1], &vec![1, 4, 5]));
    }

    #[test]
    fn one_token_is_not_parted() {
        assert!(split(&batch(), 0).is_none() && split(&batch(), 6).is_none());
    }
}
