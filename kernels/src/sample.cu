// The next token of each sequence from its row of logits, in two launches without the host: crates/ops/src/sample tells
// the stages and is the oracle. sample.rs tells the layouts of all arrays.
//
// sample_scan, blocks of 256 threads over (row, part of the vocabulary): applies bias, penalties and bans to the part,
// in place, then takes in one pass: whether the row is sound, its largest allowed logit, and the draw, if nothing
// truncates it. sample_finish, a block of 512 threads a row: puts the parts together, truncates and draws where that is
// asked for, and log probabilities, in more passes over the row, which is in L2 by then.
//
// The draw is the token with the largest logit / temperature + Gumbel noise of (seed, index, token) among the kept ones
// (gumbel.cuh): a function of the row and its parameters, whatever the batch and the number of parts. The sum is in f64,
// in which no temperature above 0 overflows. Of equals the lower id is chosen, everywhere.
//
// Passes over a row: 1; with top-k or top-p 4 (one more with both); with min-p alone 2; for log probabilities 1 more, and
// 3 more for the list of likeliest tokens.
//
// Bytes: 4 * rows * vocab from device memory, if a row stays in L2. Share of the roofline: not measured yet.
// Compiled for sm_80, sm_89 and sm_90a: at most 52 registers (scan) and 123 (finish), nothing spilled.
#include "gumbel.cuh"
#include "truncate.cuh"

constexpr uint32_t SKIPPED = 0xffffffffu;
constexpr uint32_t NONE = 0xffffffffu;
constexpr uint32_t MOST_LOGPROBS = 20;
constexpr uint32_t SEEN = 0x80000000u;

// One row's parameters: sample.rs, `SampleRow`.
struct alignas(16) SampleRow {
    uint64_t seed;
    uint32_t slot;
    uint32_t index;
    float temperature;
    uint32_t top_k;
    float top_p;
    float min_p;
    float repetition;
    float frequency;
    float presence;
    uint32_t logprobs;
    uint32_t mask;
    uint32_t count_last;
    uint32_t first_adjustment;
    uint32_t adjustments;
    uint32_t first_banned;
    uint32_t banned;

    // What cannot be divided by is greedy.
    __device__ __forceinline__ bool greedy() const { return !(temperature > 0.0f); }

    __device__ __forceinline__ bool takes_top_k(uint32_t vocab) const { return top_k > 0 && top_k < vocab; }

    __device__ __forceinline__ bool truncated(uint32_t vocab) const {
        return takes_top_k(vocab) || top_p < 1.0f || min_p > 0.0f;
    }
};
static_assert(sizeof(SampleRow) == 80, "the layout that sample.rs writes");

// What a block of sample_scan found.
struct alignas(16) Part {
    double score;
    uint32_t drawn;
    float max;
    uint32_t largest;
    uint32_t unsound;
};
static_assert(sizeof(Part) == 32, "the size that sample.rs plans for");

__device__ __forceinline__ LogitRow row_of(float* logits, const uint32_t* masks, const SampleRow& params,
                                           uint32_t vocab) {
    const uint64_t mask_words = (vocab + 31) / 32;
    return {logits + static_cast<uint64_t>(blockIdx.x) * vocab, vocab,
            params.mask == NONE ? nullptr : masks + params.mask * mask_words};
}

// NaN or infinite upwards.
__device__ __forceinline__ bool unsound(float logit) { return !(logit < INFINITY); }

// Finite above; what is no number any more is impossible.
__device__ __forceinline__ float bounded(float logit) {
    return logit != logit ? -INFINITY : fminf(logit, FLT_MAX);
}

__device__ __forceinline__ float penalized(float logit, uint32_t generated, const SampleRow& params) {
    logit = logit > 0.0f ? logit / params.repetition : __fmul_rn(logit, params.repetition);
    if (generated == 0) {
        return logit;
    }
    logit = __fsub_rn(logit, __fmul_rn(params.frequency, __uint2float_rn(generated)));
    return __fsub_rn(logit, params.presence);
}

// Applies bias and penalties to one logit; gives whether it was unsound. `seen`: SEEN and how often it was generated.
__device__ __forceinline__ bool adjust(float& logit, float bias, uint32_t seen, const SampleRow& params) {
    const bool was_unsound = unsound(logit);
    float adjusted = bounded(logit + bias);
    if (seen & SEEN) {
        adjusted = bounded(penalized(adjusted, seen & ~SEEN, params));
    }
    logit = adjusted;
    return was_unsound;
}

struct Adjustments {
    const uint32_t* tokens;
    const uint32_t* seen;
    const float* biases;
};

// Bias and penalties of tokens from `begin` up to `end`. `last` is one more generated token, or NO_TOKEN.
__device__ __forceinline__ bool adjust_all(const LogitRow& row, const SampleRow& params, const Adjustments& list,
                                           uint32_t last, uint32_t begin, uint32_t end) {
    bool was_unsound = false;
    bool listed = false;
    for (uint32_t i = threadIdx.x; i < params.adjustments; i += blockDim.x) {
        const uint32_t at = params.first_adjustment + i;
        const uint32_t token = list.tokens[at];
        if (token < begin || token >= end) {
            continue;
        }
        listed = listed || token == last;
        const uint32_t seen = token == last ? (list.seen[at] + 1) | SEEN : list.seen[at];
        was_unsound |= adjust(row.logits[token], list.biases[at], seen, params);
    }
    const bool applied = __syncthreads_or(listed);
    if (threadIdx.x == 0 && !applied && last >= begin && last < end) {
        was_unsound |= adjust(row.logits[last], 0.0f, SEEN | 1, params);
    }
    __syncthreads();
    return was_unsound;
}

// Makes the banned tokens from `begin` up to `end` impossible, and keeps their logits.
__device__ __forceinline__ bool ban(const LogitRow& row, const uint32_t* banned, float* kept, uint32_t count,
                                    uint32_t begin, uint32_t end) {
    const auto here = [&](uint32_t token) { return token >= begin && token < end; };
    bool was_unsound = false;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        if (here(banned[i])) {
            kept[i] = row.logits[banned[i]];
            was_unsound |= unsound(kept[i]);
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        if (here(banned[i])) {
            row.logits[banned[i]] = -INFINITY;
        }
    }
    __syncthreads();
    return was_unsound;
}

// Draws by Gumbel noise. Most tokens cannot win, and are passed over before their noise, or even their hash, is computed;
// the bounds are rounded as the scores are, so that none of these would have won.
struct Draw {
    uint64_t stream;
    double per_temperature;
    // The best of this thread, and a score that some thread of the warp has.
    Choice<double> best;
    double reached;

    static __device__ __forceinline__ Draw of(const SampleRow& params) {
        return {draw_stream(params.seed, params.index), 1.0 / static_cast<double>(params.temperature),
                no_choice<double>(), -INFINITY};
    }

    __device__ __forceinline__ double score(float logit, float noise) const {
        return fma(static_cast<double>(logit), per_temperature, static_cast<double>(noise));
    }

    __device__ __forceinline__ void take(uint32_t token, float logit) {
        if (score(logit, MOST_NOISE) < reached) {
            return;
        }
        const uint32_t bits = noise_bits(stream, token);
        if (score(logit, noise_bound(bits)) < reached) {
            return;
        }
        best = Better()(best, Choice<double>{score(logit, gumbel(bits)), token});
        reached = fmax(reached, best.value);
    }

    // All threads of the warp.
    __device__ __forceinline__ void share() { reached = warp_max(reached); }
};

struct Found {
    Choice<float> largest;
    Choice<double> drawn;
    bool unsound;
};

// One pass over a part of the row. This thread's share of what is found.
__device__ __forceinline__ Found scan(const LogitRow& row, const SampleRow& params, uint32_t begin, uint32_t end) {
    const bool draws = !params.greedy() && !params.truncated(row.vocab);
    const uint32_t turn = 16 * blockDim.x;
    Found found = {no_choice<float>(), no_choice<double>(), false};
    Draw draw = Draw::of(params);
    for (uint32_t at = begin; at < end; at += turn) {
        for_each_logit(row, at, min(at + turn, end), [&](uint32_t token, float logit) {
            found.unsound |= unsound(logit);
            if (!possible(logit) || !row.allows(token)) {
                return;
            }
            found.largest = Better()(found.largest, Choice<float>{logit, token});
            if (draws) {
                draw.take(token, logit);
            }
        });
        draw.share();
    }
    found.drawn = draw.best;
    return found;
}

__device__ __forceinline__ Found reduce(const Found& own) {
    return {block_reduce(own.largest, Better()), block_reduce(own.drawn, Better()), __syncthreads_or(own.unsound) != 0};
}

extern "C" __global__ void __launch_bounds__(256) sample_scan(Part* parts, float* logits, float* banned_logits, const SampleRow* rows, const uint32_t* masks, const uint32_t* adjust_tokens, const uint32_t* adjust_seen, const float* adjust_biases, const uint32_t* banned, const uint32_t* last_tokens, uint32_t vocab, uint32_t slots) {
    const SampleRow params = rows[blockIdx.x];
    if (params.slot == SKIPPED) {
        return;
    }
    DEVICE_ASSERT(params.slot < slots, "a slot outside the table of last tokens");
    const LogitRow row = row_of(logits, masks, params, vocab);
    const uint32_t length = ((vocab + gridDim.y - 1) / gridDim.y + 3) / 4 * 4;
    const uint32_t begin = min(blockIdx.y * length, vocab);
    const uint32_t end = min(begin + length, vocab);
    const uint32_t last = params.count_last && params.slot < slots ? last_tokens[params.slot] : NO_TOKEN;
    bool was_unsound = false;
    if (params.adjustments > 0 || last != NO_TOKEN) {
        was_unsound |= adjust_all(row, params, {adjust_tokens, adjust_seen, adjust_biases}, last, begin, end);
    }
    if (params.banned > 0) {
        was_unsound |=
            ban(row, banned + params.first_banned, banned_logits + params.first_banned, params.banned, begin, end);
    }
    Found found = scan(row, params, begin, end);
    found.unsound |= was_unsound;
    found = reduce(found);
    if (threadIdx.x == 0) {
        parts[blockIdx.x * gridDim.y + blockIdx.y] = {found.drawn.value, found.drawn.token, found.largest.value,
                                                      found.largest.token, found.unsound};
    }
}

__device__ __forceinline__ Found combine(const Part* parts, uint32_t count) {
    Found own = {no_choice<float>(), no_choice<double>(), false};
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const Part part = parts[i];
        own.largest = Better()(own.largest, Choice<float>{part.max, part.largest});
        own.drawn = Better()(own.drawn, Choice<double>{part.score, part.drawn});
        own.unsound |= part.unsound != 0;
    }
    return reduce(own);
}

// Gives the banned tokens their logits back, and finds the largest again.
__device__ __forceinline__ Choice<float> unban(const LogitRow& row, const SampleRow& params, const uint32_t* banned,
                                               const float* kept) {
    for (uint32_t i = threadIdx.x; i < params.banned; i += blockDim.x) {
        if (banned[i] < row.vocab) {
            row.logits[banned[i]] = kept[i];
        }
    }
    __syncthreads();
    Choice<float> largest = no_choice<float>();
    for_each_logit(row, 0, row.vocab, [&](uint32_t token, float logit) {
        if (possible(logit) && row.allows(token)) {
            largest = Better()(largest, Choice<float>{logit, token});
        }
    });
    return block_reduce(largest, Better());
}

// The keys from which on tokens may be drawn, and are listed with their log probabilities.
struct Cuts {
    uint64_t drawn;
    uint64_t listed;
};

__device__ __forceinline__ Cuts find_cuts(Truncation& truncation, const LogitRow& row, const SampleRow& params,
                                          const Weights& weights) {
    enum { TOP_K, TOP_P, LIST, STEPS };
    const bool top_k = !params.greedy() && params.takes_top_k(row.vocab);
    const bool top_p = !params.greedy() && params.top_p < 1.0f;
    const uint32_t listed = params.logprobs != NONE ? min(params.logprobs, MOST_LOGPROBS) : 0;
    Cuts cuts = {0, ~uint64_t(0)};
    if (!top_k && !top_p && listed == 0) {
        return cuts;
    }
    truncation.survey(row, weights, top_p);
    Kept kept = {0, {0, 0}};
    // Rolled up: the code is long.
#pragma unroll 1
    for (int step = TOP_K; step < STEPS; step++) {
        uint64_t target = 0;
        if (step == TOP_K && (top_k || top_p)) {
            // Without a top-k, all: a count that is not reached.
            target = top_k ? params.top_k : ~uint64_t(0);
        } else if (step == TOP_P && top_p) {
            const double share = static_cast<double>(params.top_p) * static_cast<double>(kept.tally.mass);
            target = share > 1.0 ? static_cast<uint64_t>(ceil(share)) : 1;
        } else if (step == LIST) {
            target = listed;
        }
        if (target == 0) {
            continue;
        }
        kept = truncation.keep(row, weights, target, step == TOP_P ? By::mass : By::count);
        (step == LIST ? cuts.listed : cuts.drawn) = kept.least;
    }
    return cuts;
}

__device__ __forceinline__ uint32_t draw_kept(const LogitRow& row, const SampleRow& params, const Weights& weights,
                                              uint64_t least) {
    const float least_weight = fminf(params.min_p, 1.0f);
    Draw draw = Draw::of(params);
    for_each_logit(row, 0, row.vocab, [&](uint32_t token, float logit) {
        if (!possible(logit) || rank_key(logit, token) < least || !row.allows(token)) {
            return;
        }
        if (params.min_p > 0.0f && weights.of(logit) < least_weight) {
            return;
        }
        draw.take(token, logit);
    });
    return block_reduce(draw.best, Better()).token;
}

// ln of the sum of e^logit.
__device__ __forceinline__ double log_sum(const LogitRow& row, float max) {
    const Weights weights = Weights::of(max, 1.0f);
    uint64_t own = 0;
    for_each_logit(row, 0, row.vocab, [&](uint32_t token, float logit) {
        if (possible(logit) && row.allows(token)) {
            own += weights.mass(logit);
        }
    });
    const uint64_t sum = block_reduce(own, Sum());
    return static_cast<double>(max) + log(static_cast<double>(sum) / static_cast<double>(MASS_UNITS));
}

__device__ __forceinline__ float logprob(float logit, double log_of_sum) {
    return static_cast<float>(static_cast<double>(logit) - log_of_sum);
}

// The tokens whose keys are at least `least`, likeliest first; after the last of them NO_TOKEN and negative infinity.
__device__ __forceinline__ void write_top(uint64_t* list, const LogitRow& row, uint64_t least, double log_of_sum,
                                          uint32_t* top_ids, float* top_logprobs) {
    __shared__ uint32_t count;
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    for_each_logit(row, 0, row.vocab, [&](uint32_t token, float logit) {
        if (possible(logit) && rank_key(logit, token) >= least && row.allows(token)) {
            list[atomicAdd(&count, 1u)] = rank_key(logit, token);
        }
    });
    __syncthreads();
    if (threadIdx.x < MOST_LOGPROBS) {
        top_ids[threadIdx.x] = NO_TOKEN;
        top_logprobs[threadIdx.x] = -INFINITY;
    }
    __syncthreads();
    if (threadIdx.x < count) {
        const uint64_t key = list[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t i = 0; i < count; i++) {
            rank += list[i] > key;
        }
        top_ids[rank] = token_of_key(key);
        top_logprobs[rank] = logprob(logit_of_key(key), log_of_sum);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(512) sample_finish(uint32_t* tokens, float* logprobs, uint32_t* top_ids, float* top_logprobs, uint32_t* faults, uint32_t* last_tokens, const Part* parts, float* logits, const float* banned_logits, const SampleRow* rows, const uint32_t* masks, const uint32_t* banned, uint32_t vocab, uint32_t slots, uint32_t row_parts) {
    __shared__ Truncation truncation;
    const uint32_t r = blockIdx.x;
    const SampleRow params = rows[r];
    if (params.slot == SKIPPED) {
        return;
    }
    const LogitRow row = row_of(logits, masks, params, vocab);
    Found found = combine(parts + r * row_parts, row_parts);
    const bool all_banned = !found.unsound && found.largest.token == NO_TOKEN && params.banned > 0;
    if (all_banned) {
        found.largest = unban(row, params, banned + params.first_banned, banned_logits + params.first_banned);
    }
    if (found.unsound || found.largest.token == NO_TOKEN) {
        if (threadIdx.x == 0) {
            tokens[r] = NO_TOKEN;
            faults[r] = 1;
        }
        return;
    }
    const Weights weights = Weights::of(found.largest.value, params.temperature);
    const Cuts cuts = find_cuts(truncation, row, params, weights);
    uint32_t token = params.greedy() ? found.largest.token : found.drawn.token;
    if (!params.greedy() && (params.truncated(vocab) || all_banned)) {
        token = draw_kept(row, params, weights, cuts.drawn);
    }
    if (params.logprobs != NONE) {
        const double log_of_sum = log_sum(row, weights.max);
        if (threadIdx.x == 0) {
            logprobs[r] = logprob(row.logits[token], log_of_sum);
        }
        if (params.logprobs > 0) {
            const uint64_t top = static_cast<uint64_t>(r) * MOST_LOGPROBS;
            write_top(truncation.list(), row, cuts.listed, log_of_sum, top_ids + top, top_logprobs + top);
        }
    }
    if (threadIdx.x == 0) {
        tokens[r] = token;
        faults[r] = 0;
        if (params.slot < slots) {
            last_tokens[params.slot] = token;
        }
    }
}
