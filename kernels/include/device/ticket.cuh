// How the blocks that share a piece of work find out which of them ends it.
#pragma once

// Whether this block is the last of `blocks` to draw from the ticket, which is 0 before the first and after the last. What
// the others stored before is then seen by __ldcg. All threads of the block must call this.
__device__ __forceinline__ bool is_last_block(uint32_t* ticket, uint32_t blocks) {
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(ticket, 1u) == blocks - 1;
        __threadfence();
        if (last) {
            *ticket = 0;  // for the next layer, which uses the same
        }
    }
    return __syncthreads_or(last);
}
