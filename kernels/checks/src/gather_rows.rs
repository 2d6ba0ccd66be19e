//! Picked rows against a loop.

use plimsoll_kernels::gather_rows::{GatherRows, NO_ROW};

use crate::arrays::{Output, expect_same, to_u32, u32_bytes};
use crate::{Case, Random, TestDevice};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "gather_rows/rows and padding".into(), run: Box::new(gather) }]
}

/// Rows are compared as the words they are made of: nothing is computed.
fn gather(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (count, x_rows, hidden) in [(1, 1, 8), (9, 4, 2056), (random.between(1, 12), 20, 8 * random.between(1, 200))] {
        let words = hidden / 2;
        let x: Vec<u32> = (0..x_rows * words).map(|_| random.bits() as u32).collect();
        let rows: Vec<u32> =
            (0..count).map(|i| if i % 4 == 2 { NO_ROW } else { random.below(x_rows) as u32 }).collect();
        let out = Output::new(device, 4 * count * words);
        let op = GatherRows {
            out: out.at,
            x: device.upload(&u32_bytes(&x)),
            rows: device.upload(&u32_bytes(&rows)),
            count: count as u32,
            x_rows: x_rows as u32,
            hidden: hidden as u32,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let poison = vec![u32::MAX; words];
        let row = |row: &u32| if *row == NO_ROW { &poison[..] } else { &x[*row as usize * words..][..words] };
        let want: Vec<u32> = rows.iter().flat_map(row).copied().collect();
        expect_same(&format!("{count} of {x_rows} x {hidden}"), &to_u32(&out.read(device)?), &want)?;
    }
    Ok(())
}
