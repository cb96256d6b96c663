// The four kernels of the CUDA library and the layout of their workspace.
//
// Statistics are deterministic without float atomics: (1) row_map sorts the tokens by language, stably, into tiles of
// one language; (2) forward writes each tile's (mean, m2, active) per neuron; (3) merge combines a language's tiles in
// order, in float64. No --use_fast_math: expf and division keep their 1 to 2 ulp.
#pragma once

#include <cuda_runtime.h>

#include "device.cuh"

namespace slamkern {

constexpr int THREADS = 128;  // each owns a vector of neurons
constexpr int BLOCKS = 4;     // resident on a multiprocessor: 128 registers a thread
constexpr int MAP_WARPS = 32, AHEAD = 8;  // of row_map: warps at most, ids in flight together a thread
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int TILE_ROWS = 128;  // partial moments are then 1.6 % of the traffic of gate, up and hidden in bfloat16
constexpr int UNROLL = 3;       // rows whose loads are in flight together

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The sum of x over the lanes up to this one.
__device__ inline int sum_to_lane(int x, int lane) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(ALL_LANES, x, distance);
    if (lane >= distance) x += other;
  }
  return x;
}

struct Tile { int first, rows, language; };

struct Workspace {
  int *order, *first_tile;
  Tile* tiles;
  float *mean, *m2;
  int* active;
  int64_t bytes;

  Workspace(void* memory, int64_t tokens, int64_t neurons, int64_t languages) {
    const int64_t most = max_tiles(tokens, languages);
    char* const base = static_cast<char*>(memory);
    int64_t used = 0;
    const auto take = [&](int64_t size) {
      char* at = base + used;
      used += 16 * divide_up(size, 16);
      return static_cast<void*>(at);
    };
    order = static_cast<int*>(take(4 * tokens));
    first_tile = static_cast<int*>(take(4 * (languages + 2)));
    tiles = static_cast<Tile*>(take(static_cast<int64_t>(sizeof(Tile)) * most));
    mean = static_cast<float*>(take(4 * most * neurons));
    m2 = static_cast<float*>(take(4 * most * neurons));
    active = static_cast<int*>(take(4 * most * neurons));
    bytes = used;
  }
  static int64_t max_tiles(int64_t tokens, int64_t languages) { return tokens / TILE_ROWS + languages + 1; }
};

// One block: the tokens in the order of their language, those of no language last, and the tiles that they make. It
// waits for memory, not for bandwidth, hence the loads ahead; a batch of many layers makes it once (slamkern_stats_plan).
//
// Each warp counts the languages of its share of the tokens, learns where each of them goes, and puts them there, in
// order: a stable counting sort without atomics, which reads the ids twice however many languages there are.
__global__ void row_map(const int32_t* ids, int tokens, int languages, Workspace work, int64_t* count) {
  extern __shared__ int places[];  // (warps, languages + 1): a warp's tokens of a language, then where its next one goes
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = languages + 1;
  const int share = static_cast<int>(divide_up(tokens, warps)), first = min(warp * share, tokens);
  const int last = min(first + share, tokens);
  int* const mine = places + warp * groups;
  const auto group = [=](int token) {  // its language; `languages` stands for none, -1 for no token
    const int id = token < last ? ids[token] : -1;
    return token >= last ? -1 : id >= 0 && id < languages ? id : languages;
  };

  for (int i = lane; i < groups; i += 32) mine[i] = 0;
  __syncwarp();
  // Calls visit(token, its group) for 32 tokens of the warp at a time, in order.
  const auto each = [&](const auto& visit) {
    for (int start = first; start < last; start += 32 * AHEAD) {
      int own[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) own[k] = group(start + 32 * k + lane);
#pragma unroll
      for (int k = 0; k < AHEAD; ++k)
        if (start + 32 * k < last) visit(start + 32 * k + lane, own[k]);
    }
  };
  each([&](int, int own) {
    const unsigned peers = __match_any_sync(ALL_LANES, own);
    if (own >= 0 && lane == __ffs(peers) - 1) mine[own] += __popc(peers);
    __syncwarp();
  });
  __syncthreads();

  if (warp == 0) {
    int row = 0, tile = 0;  // before the languages of this turn, one a lane
    for (int start = 0; start < groups; start += 32) {
      const int i = start + lane;
      int rows = 0;
      for (int w = 0; i < groups && w < warps; ++w) rows += places[w * groups + i];
      const int tiles = static_cast<int>(divide_up(rows, TILE_ROWS));
      const int row_end = row + sum_to_lane(rows, lane), tile_end = tile + sum_to_lane(tiles, lane);
      if (i < groups) {
        int place = row_end - rows;
        for (int w = 0; w < warps; ++w) {
          const int n = places[w * groups + i];
          places[w * groups + i] = place;
          place += n;
        }
        work.first_tile[i] = tile_end - tiles;
        if (i < languages) count[i] = rows;
        else work.first_tile[i + 1] = tile_end;
      }
      row = __shfl_sync(ALL_LANES, row_end, 31);
      tile = __shfl_sync(ALL_LANES, tile_end, 31);
    }
  }
  __syncthreads();

  // Until the first warp places a token its places are where the languages begin.
  for (int g = warp; g < groups; g += warps) {
    const int begin = places[g], end = g < languages ? places[g + 1] : tokens;
    for (int i = lane; begin + i * TILE_ROWS < end; i += 32)
      work.tiles[work.first_tile[g] + i] = {begin + i * TILE_ROWS, min(TILE_ROWS, end - begin - i * TILE_ROWS), g};
  }
  __syncthreads();

  each([&](int token, int own) {
    const unsigned peers = __match_any_sync(ALL_LANES, own);
    if (own >= 0) work.order[mine[own] + __popc(peers & ((1u << lane) - 1))] = token;
    __syncwarp();
    if (own >= 0 && lane == __ffs(peers) - 1) mine[own] += __popc(peers);
    __syncwarp();
  });
}

// A block owns one tile (or, without statistics, TILE_ROWS rows in order) by THREADS * VEC neurons; a thread VEC
// neurons.
template <class T, int VEC, int ACTIVATION, bool STATS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    forward(const T* gate, int64_t gate_stride, const T* up, int64_t up_stride, T* hidden, int64_t hidden_stride,
            int64_t tokens, int64_t neurons, int languages, int observe, Workspace work) {
  using V = Vector<T, VEC>;
  const int64_t column = (blockIdx.x * int64_t{THREADS} + threadIdx.x) * VEC;
  if (column >= neurons) return;
  const int64_t tiles = STATS ? work.first_tile[languages + 1] : divide_up(tokens, TILE_ROWS);
  for (int64_t t = blockIdx.y; t < tiles; t += gridDim.y) {
    const int64_t first = STATS ? work.tiles[t].first : t * TILE_ROWS;
    const int rows = STATS ? work.tiles[t].rows : static_cast<int>(min(int64_t{TILE_ROWS}, tokens - first));
    // Welford's update of x - origin, origin being the tile's first value: rounding is then relative to the spread.
    float origin[VEC], mean[VEC], m2[VEC];
    int active[VEC];
    for (int i = 0; i < rows; i += UNROLL) {
      V gates[UNROLL], ups[UNROLL];
      int64_t row[UNROLL];
#pragma unroll
      for (int r = 0; r < UNROLL; ++r) {
        if (i + r >= rows) break;
        row[r] = STATS ? work.order[first + i + r] : first + i + r;
        gates[r] = *reinterpret_cast<const V*>(gate + row[r] * gate_stride + column);
        if (up) ups[r] = *reinterpret_cast<const V*>(up + row[r] * up_stride + column);
      }
#pragma unroll
      for (int r = 0; r < UNROLL; ++r) {
        if (i + r >= rows) break;
        const float share = 1.0f / static_cast<float>(i + r + 1);
        V out;
#pragma unroll
        for (int c = 0; c < VEC; ++c) {
          const float value = activate<ACTIVATION>(to_float(gates[r].values[c]));
          const float product = up ? value * to_float(ups[r].values[c]) : value;
          out.values[c] = from_float<T>(product);
          if constexpr (STATS) {
            const float x = observe == SLAMKERN_HIDDEN ? product : value;
            if (i + r == 0) {
              origin[c] = x;
              mean[c] = m2[c] = 0.0f;
              active[c] = 0;
            }
            const float shifted = x - origin[c], delta = shifted - mean[c];
            mean[c] += delta * share;
            m2[c] += delta * (shifted - mean[c]);
            active[c] += x > 0.0f;
          }
        }
        *reinterpret_cast<V*>(hidden + row[r] * hidden_stride + column) = out;
      }
    }
    if constexpr (STATS) {
#pragma unroll
      for (int c = 0; c < VEC; ++c) {
        const int64_t at = t * neurons + column + c;
        work.mean[at] = origin[c] + mean[c];
        work.m2[at] = m2[c];
        work.active[at] = active[c];
      }
    }
  }
}

// A thread owns one neuron of one language: Chan's merge of its tiles, in order, in float64.
__global__ void merge(int64_t neurons, Workspace work, double* mean, double* m2, int64_t* active) {
  const int64_t column = blockIdx.x * int64_t{THREADS} + threadIdx.x, language = blockIdx.y;
  if (column >= neurons) return;
  double n = 0, total_mean = 0, total_m2 = 0;
  int64_t total_active = 0;
  for (int t = work.first_tile[language]; t < work.first_tile[language + 1]; ++t) {
    const int64_t at = t * neurons + column;
    const double rows = work.tiles[t].rows, share = rows / (n + rows), delta = work.mean[at] - total_mean;
    total_mean += delta * share;
    total_m2 += work.m2[at] + delta * delta * (share * n);
    total_active += work.active[at];
    n += rows;
  }
  mean[language * neurons + column] = total_mean;
  m2[language * neurons + column] = total_m2;
  active[language * neurons + column] = total_active;
}

// A thread owns VEC neurons of every gridDim.y-th row.
template <class T, int VEC, int ACTIVATION>
__global__ void backward(const T* grad, int64_t grad_stride, const T* gate, int64_t gate_stride, const T* up,
                         int64_t up_stride, T* grad_gate, T* grad_up, T* hidden, int64_t tokens, int64_t neurons) {
  using V = Vector<T, VEC>;
  const int64_t column = (blockIdx.x * int64_t{THREADS} + threadIdx.x) * VEC;
  if (column >= neurons) return;
  for (int64_t row = blockIdx.y; row < tokens; row += gridDim.y) {
    const V g = *reinterpret_cast<const V*>(grad + row * grad_stride + column);
    const V x = *reinterpret_cast<const V*>(gate + row * gate_stride + column);
    V u, out_gate, out_up, out_hidden;
    if (up) u = *reinterpret_cast<const V*>(up + row * up_stride + column);
#pragma unroll
    for (int c = 0; c < VEC; ++c) {
      const float gate_c = to_float(x.values[c]), grad_c = to_float(g.values[c]);
      const float up_c = up ? to_float(u.values[c]) : 1.0f, value = activate<ACTIVATION>(gate_c);
      out_gate.values[c] = from_float<T>(grad_c * up_c * slope<ACTIVATION>(gate_c));
      out_up.values[c] = from_float<T>(grad_c * value);
      out_hidden.values[c] = from_float<T>(value * up_c);
    }
    const int64_t at = row * neurons + column;
    if (grad_gate) *reinterpret_cast<V*>(grad_gate + at) = out_gate;
    if (grad_up) *reinterpret_cast<V*>(grad_up + at) = out_up;
    if (hidden) *reinterpret_cast<V*>(hidden + at) = out_hidden;
  }
}

}  // namespace slamkern
