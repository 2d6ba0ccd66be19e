// Which tokens of a row top-k, top-p and a list of likeliest tokens keep: all from some rank key on (logits.cuh).
//
// A histogram over the distance to the largest logit, fine near it and coarse far away, tells in one pass in which bin
// the last kept token is. The bin's tokens are then listed in shared memory in a second pass, and the key is found among
// them by bisection. A bin with more tokens than the list holds (equal logits by the thousand) is bisected in the row.
//
// Probabilities are summed as integers, in units of 2^-44 of the largest, so that sums depend on no order: an error of at
// most 2^-44 a token, less than 2e-8 of the sum for a vocabulary of 2^18.
#pragma once

#include "logits.cuh"

constexpr uint32_t BINS = 2048;
constexpr uint32_t LISTED = 2048;
constexpr float MASS_UNITS = 0x1p44f;

// Tokens and their probability mass.
struct alignas(16) Tally {
    uint64_t mass;
    uint32_t count;

    __device__ __forceinline__ Tally operator+(const Tally& other) const {
        return {mass + other.mass, count + other.count};
    }
};

__device__ __forceinline__ Tally from_lane(const Tally& tally, int offset) {
    return {from_lane(tally.mass, offset), from_lane(tally.count, offset)};
}

struct Lowest {
    __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return b < a ? b : a; }
};

struct Highest {
    __device__ __forceinline__ uint64_t operator()(uint64_t a, uint64_t b) const { return b > a ? b : a; }
};

// What tokens weigh: the likeliest 1.
struct Weights {
    float max;
    float per_temperature;

    // However low the temperature, its reciprocal stays finite, and the likeliest token's weight 1.
    static __device__ __forceinline__ Weights of(float max, float temperature) {
        return {max, fminf(1.0f / temperature, FLT_MAX)};
    }

    // A token infinitely far from the likeliest stays impossible at an infinite temperature.
    __device__ __forceinline__ float of(float logit) const {
        const float weight = expf((logit - max) * per_temperature);
        return weight >= 0.0f ? weight : 0.0f;
    }

    __device__ __forceinline__ uint64_t mass(float logit) const { return static_cast<uint64_t>(of(logit) * MASS_UNITS); }
};

// Some of the row's likeliest tokens: those whose keys are at least `least`.
struct Kept {
    uint64_t least;
    Tally tally;
};

// What a target is reached in: tokens or mass.
enum class By { count, mass };

__device__ __forceinline__ uint64_t measure(const Tally& tally, By by) {
    return by == By::count ? tally.count : tally.mass;
}

__device__ __forceinline__ bool possible(float logit) { return logit > -INFINITY; }

class Truncation {
  public:
    // The row's tokens into bins. `masses`: whether a target in mass will be asked for. All threads.
    __device__ __forceinline__ void survey(const LogitRow& row, const Weights& weights, bool masses) {
        for (uint32_t i = threadIdx.x; i < BINS; i += blockDim.x) {
            counts_[i] = 0;
            mass_low_[i] = 0;
            mass_high_[i] = 0;
        }
        __syncthreads();
        for_each_logit(row, 0, row.vocab, [&](uint32_t token, float logit) {
            if (!possible(logit) || !row.allows(token)) {
                return;
            }
            const uint32_t bin = bin_of(logit, weights.max);
            atomicAdd(&counts_[bin], 1u);
            if (masses) {
                add_mass(bin, weights.mass(logit));
            }
        });
        __syncthreads();
    }

    // The fewest of the likeliest tokens that reach `target`, which is above 0; all if they do not. All threads; after
    // survey.
    __device__ __forceinline__ Kept keep(const LogitRow& row, const Weights& weights, uint64_t target, By by) {
        const Tally before = find_bin(target, by);
        if (bin_ == BINS) {
            return {0, before};
        }
        const Tally in_bin = bin(bin_);
        const Source source = {row, weights, bin_, in_bin.count <= LISTED};
        if (source.listed) {
            list_bin(source);
        }
        return bisect(source, before, in_bin, target, by);
    }

    // Room for LISTED keys, free between calls of `keep`.
    __device__ __forceinline__ uint64_t* list() { return list_; }

  private:
    // Tokens of one bin, listed or in the row.
    struct Source {
        const LogitRow& row;
        const Weights& weights;
        uint32_t bin;
        bool listed;
    };

    // The larger the logit the lower the bin: 128 bins for each doubling of 1 + its distance to the largest.
    static __device__ __forceinline__ uint32_t bin_of(float logit, float max) {
        const uint32_t bin = (__float_as_uint(1.0f + (max - logit)) - __float_as_uint(1.0f)) >> 16;
        return min(bin, BINS - 1);
    }

    // Shared memory adds 32 bits at once, but 64 only by trying again and again.
    __device__ __forceinline__ void add_mass(uint32_t bin, uint64_t mass) {
        const uint32_t low = static_cast<uint32_t>(mass);
        const uint32_t before = low != 0 ? atomicAdd(&mass_low_[bin], low) : 0;
        const uint32_t carry = before + low < before;
        const uint32_t high = static_cast<uint32_t>(mass >> 32) + carry;
        if (high != 0) {
            atomicAdd(&mass_high_[bin], high);
        }
    }

    __device__ __forceinline__ Tally bin(uint32_t i) const {
        return {static_cast<uint64_t>(mass_high_[i]) << 32 | mass_low_[i], counts_[i]};
    }

    // Sets bin_ to the bin in which the target is reached, or BINS if it is not; gives what is in the bins before it.
    __device__ __forceinline__ Tally find_bin(uint64_t target, By by) {
        const uint32_t each = BINS / blockDim.x;
        const uint32_t first = threadIdx.x * each;
        Tally own = {0, 0};
        for (uint32_t i = 0; i < each; i++) {
            own = own + bin(first + i);
        }
        Tally before = prefix(own);
        if (threadIdx.x == blockDim.x - 1) {
            bin_ = BINS;
            before_ = before + own;
        }
        __syncthreads();
        if (measure(before, by) < target && measure(before + own, by) >= target) {
            uint32_t i = first;
            for (; measure(before + bin(i), by) < target; i++) {
                before = before + bin(i);
            }
            bin_ = i;
            before_ = before;
        }
        __syncthreads();
        return before_;
    }

    // What threads before this one have.
    __device__ __forceinline__ Tally prefix(const Tally& own) {
        const Tally in_warp = {warp_prefix_sum(own.mass), warp_prefix_sum(own.count)};
        if (lane_id() == WARP_SIZE - 1) {
            warp_tallies_[warp_id()] = in_warp;
        }
        __syncthreads();
        Tally before = {in_warp.mass - own.mass, in_warp.count - own.count};
        for (int warp = 0; warp < warp_id(); warp++) {
            before = before + warp_tallies_[warp];
        }
        return before;
    }

    __device__ __forceinline__ void list_bin(const Source& source) {
        if (threadIdx.x == 0) {
            listed_ = 0;
        }
        __syncthreads();
        for_each_in_row(source, [&](uint64_t key) { list_[atomicAdd(&listed_, 1u)] = key; });
        __syncthreads();
    }

    // Keeps lowering what is certainly too few and raising what is certainly enough, until one token is between them.
    __device__ __forceinline__ Kept bisect(const Source& source, const Tally& before, const Tally& in_bin,
                                           uint64_t target, By by) {
        uint64_t low = ~uint64_t(0);
        uint64_t high = 0;
        for_each(source, [&](uint64_t key) {
            low = Lowest()(low, key);
            high = Highest()(high, key);
        });
        // The keys from `enough` on reach the target, those from `few` on do not.
        uint64_t enough = block_reduce(low, Lowest());
        uint64_t few = block_reduce(high, Highest()) + 1;
        Tally from_enough = in_bin;
        Tally from_few = {0, 0};
        while (from_enough.count - from_few.count > 1) {
            const uint64_t middle = enough + (few - enough) / 2;
            const Tally from_middle = tally_from(source, middle);
            if (measure(before + from_middle, by) >= target) {
                enough = middle;
                from_enough = from_middle;
            } else {
                few = middle;
                from_few = from_middle;
            }
        }
        return {enough, before + from_enough};
    }

    __device__ __forceinline__ Tally tally_from(const Source& source, uint64_t least) {
        Tally own = {0, 0};
        for_each(source, [&](uint64_t key) {
            if (key >= least) {
                own = own + Tally{source.weights.mass(logit_of_key(key)), 1};
            }
        });
        return block_reduce(own, Sum());
    }

    template <typename F> __device__ __forceinline__ void for_each(const Source& source, F f) {
        if (source.listed) {
            for (uint32_t i = threadIdx.x; i < listed_; i += blockDim.x) {
                f(list_[i]);
            }
        } else {
            for_each_in_row(source, f);
        }
    }

    template <typename F> static __device__ __forceinline__ void for_each_in_row(const Source& source, F f) {
        for_each_logit(source.row, 0, source.row.vocab, [&](uint32_t token, float logit) {
            if (possible(logit) && bin_of(logit, source.weights.max) == source.bin && source.row.allows(token)) {
                f(rank_key(logit, token));
            }
        });
    }

    uint32_t counts_[BINS];
    uint32_t mass_low_[BINS];
    uint32_t mass_high_[BINS];
    uint64_t list_[LISTED];
    Tally warp_tallies_[16];
    Tally before_;
    uint32_t bin_;
    uint32_t listed_;
};
