//! Linear layers on a GPU that are several matrices, one above the other: whose formats differ, or whose columns are stored
//! in orders of their own. Each part is a launch, and each order one more, which brings the columns of `x` into it.

use candle_core::{DType, Device, Result, Tensor, bail};
use plimsoll_kernels::packed::Order;

use super::quantized::Quantized;
use super::relay::Laid;
use crate::cuda::{Cuda, address, launch_error};

#[derive(Debug, Clone)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// u32 `[in_features]`: the input feature of each stored column.
    orders: Vec<Tensor>,
}

#[derive(Debug, Clone)]
struct Part {
    matrix: Quantized,
    /// Which of the orders; as they come.
    order: Option<usize>,
}

impl Parts {
    /// Of one part or more, of as many columns each.
    pub(super) fn upload(laid: Vec<Laid>, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let rows: usize = laid.iter().map(|laid| laid.layout.rows).sum();
        if bias.as_ref().is_some_and(|bias| bias.len() != rows) {
            bail!("a bias of {} numbers does not fit {rows} output features", bias.map_or(0, |b| b.len()));
        }
        let mut known: Vec<Vec<u32>> = Vec::new();
        let mut all = Self { parts: Vec::new(), orders: Vec::new() };
        for mut laid in laid {
            let first = all.out_features();
            let bias = bias.as_ref().map(|bias| bias[first..first + laid.layout.rows].to_vec());
            let order = laid.order.take().map(|order| {
                known.iter().position(|known| *known == order).unwrap_or_else(|| {
                    known.push(order);
                    known.len() - 1
                })
            });
            all.parts.push(Part { matrix: Quantized::upload(laid, bias, device)?, order });
        }
        let upload = |order: Vec<u32>| {
            let len = order.len();
            Tensor::from_vec(order, len, device)
        };
        all.orders = known.into_iter().map(upload).collect::<Result<_>>()?;
        Ok(all)
    }

    pub(super) fn in_features(&self) -> usize {
        self.parts[0].matrix.layout().columns
    }

    pub(super) fn out_features(&self) -> usize {
        self.parts.iter().map(|part| part.matrix.layout().rows).sum()
    }

    /// Bytes of codes and scales.
    pub(super) fn packed_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.matrix.packed_bytes()).sum()
    }

    /// `x`: bf16 `[m, in_features]`; the result is `[m, out_features]`, of `dtype`: bf16 or f32.
    pub(super) fn forward(&self, x: &Tensor, dtype: DType, into: Option<&Tensor>) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        let (rows, expected) = (self.out_features(), self.in_features());
        if columns != expected {
            bail!("linear: {columns} input features, expected {expected}");
        }
        let y = match into {
            Some(y) => y.clone(),
            None => Cuda::of(x.device())?.empty((tokens, rows), dtype)?,
        };
        if y.dims() != [tokens, rows] {
            bail!("linear: y is {:?}, expected [{tokens}, {rows}]", y.shape());
        }
        let ordered = self.orders.iter().map(|order| in_order(x, order)).collect::<Result<Vec<_>>>()?;
        let mut to = address("linear", "y", &y, dtype)?;
        for Part { matrix, order } in &self.parts {
            matrix.forward_to(order.map_or(x, |order| &ordered[order]), (to, dtype), rows)?;
            to = to.byte_add(matrix.layout().rows * dtype.size_in_bytes());
        }
        Ok(y)
    }
}

/// The columns of `x` in the order in which a matrix's are stored.
fn in_order(x: &Tensor, order: &Tensor) -> Result<Tensor> {
    let (tokens, columns) = x.dims2()?;
    let cuda = Cuda::of(x.device())?;
    let out = cuda.empty((tokens, columns), DType::BF16)?;
    let op = Order {
        out: address("linear", "x in order", &out, DType::BF16)?,
        x: address("linear", "x", x, DType::BF16)?,
        order: address("linear", "order", order, DType::U32)?,
        positions: tokens as u32,
        columns: columns as u32,
    };
    op.run(cuda.queue()).map_err(launch_error)?;
    Ok(out)
}
