// The C ABI on a CPU: runs the kernels of this processor over the pieces of the matrices, and merges the statistics.
#include <cstdlib>
#include <cstring>

#include "matrix.h"
#include "parallel.h"
#include "plan.h"

namespace slamkern {

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

// The best that the processor has, or less where SLAMKERN_ISA asks for it (tests run every variant on one machine).
const Kernels& best_kernels() {
#if defined(__x86_64__)
  const char* asked = std::getenv("SLAMKERN_ISA");
  const auto allowed = [&](const Kernels& table) { return !asked || std::strcmp(asked, table.isa) == 0; };
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && allowed(avx512::table)) return avx512::table;
  if (has_avx2 && allowed(avx2::table)) return avx2::table;
#endif
  return baseline::table;
}

const Kernels& kernels() {
  static const Kernels& best = best_kernels();
  return best;
}

// Below this many elements waking a second thread costs more than it saves (torch's own grain).
constexpr int64_t GRAIN = 32768;

// Rows of a tile a power of two apart would share a few sets of the first-level cache, and the second pass over their
// columns would find nothing there (64 rows, AVX-512: 1.7 ns for 16 elements, with a line more in between 1.0 ns).
constexpr int64_t OBSERVED_STRIDE = TILE_COLUMNS + 16;

// Where each tile's moments wait for the merge: (tiles, neurons) each.
struct Partials {
  float *mean, *m2;
  int32_t* active;
  static int64_t bytes(int64_t tiles, int64_t neurons) { return tiles * neurons * 12; }
  Partials(void* memory, int64_t tiles, int64_t neurons)
      : mean(static_cast<float*>(memory)),
        m2(mean + tiles * neurons),
        active(reinterpret_cast<int32_t*>(m2 + tiles * neurons)) {}
};

// Calls body(first row, last row, column, columns) for pieces of the matrix that are worth a thread each.
template <class Body>
void for_pieces(int64_t tokens, int64_t neurons, int threads, const Body& body) {
  if (neurons == 0) return;
  const int64_t columns = divide_up(neurons, TILE_COLUMNS), rows = GRAIN / std::min(neurons, TILE_COLUMNS) + 1;
  parallel(divide_up(tokens, rows) * columns, threads, [&](int64_t item) {
    const int64_t first = item / columns * rows, column = item % columns * TILE_COLUMNS;
    body(first, std::min(first + rows, tokens), column, std::min(neurons - column, TILE_COLUMNS));
  });
}

}  // namespace
}  // namespace slamkern

using namespace slamkern;

int slamkern_abi(void) { return SLAMKERN_ABI; }
const char* slamkern_isa(void) { return kernels().isa; }
void slamkern_exp(const float* x, float* out, int64_t n) { kernels().exponential(x, out, n); }

int slamkern_swiglu(const void* gate_data, int64_t gate_stride, const void* up_data, int64_t up_stride,
                    void* hidden_data, int64_t hidden_stride, int64_t tokens, int64_t neurons, int dtype,
                    int activation, int threads, void*) {
  const Matrix gate(gate_data, gate_stride, dtype), up(up_data, up_stride, dtype);
  Matrix hidden(hidden_data, hidden_stride, dtype);
  hidden.prepare_output(tokens, neurons, threads);
  const Kernels& k = kernels();
  const auto forward = k.forward[SLAMKERN_GATE][activation];
  for_pieces(tokens, neurons, threads, [&](int64_t first, int64_t last, int64_t column, int64_t n) {
    Piece gate_piece, up_piece, hidden_piece, unused;
    for (int64_t row = first; row < last; ++row) {
      float* out = hidden.target(row, column, hidden_piece);
      forward(gate.read(k, row, column, n, gate_piece), up.read(k, row, column, n, up_piece), out, unused.values, n,
              ahead_of(gate, up, std::min(row + 1, tokens - 1), column));
      hidden.write(k, row, column, n, out);
    }
  });
  return 0;
}

int64_t slamkern_stats_workspace(int64_t tokens, int64_t neurons, int64_t languages) {
  return Plan::bytes(tokens, languages) + Partials::bytes(Plan::max_tiles(tokens, languages), neurons);
}

int slamkern_swiglu_stats(const void* gate_data, int64_t gate_stride, const void* up_data, int64_t up_stride,
                          void* hidden_data, int64_t hidden_stride, const int32_t* language_ids, int64_t tokens,
                          int64_t neurons, int64_t languages, int dtype, int activation, int observe, int64_t* count,
                          double* mean, double* m2, int64_t* active, void* workspace, int threads, void*) {
  const Matrix gate(gate_data, gate_stride, dtype), up(up_data, up_stride, dtype);
  Matrix hidden(hidden_data, hidden_stride, dtype);
  hidden.prepare_output(tokens, neurons, threads);
  const Kernels& k = kernels();
  const auto forward = k.forward[observe][activation];
  const Plan plan(language_ids, tokens, languages, count, workspace);
  const Partials partials(static_cast<char*>(workspace) + Plan::bytes(tokens, languages), plan.tiles(), neurons);
  const int64_t columns = divide_up(neurons, TILE_COLUMNS);

  parallel(plan.tiles() * columns, tokens * neurons < GRAIN ? 1 : threads, [&](int64_t item) {
    const int64_t tile_index = item / columns, column = item % columns * TILE_COLUMNS;
    const int64_t n = std::min(neurons - column, TILE_COLUMNS);
    const Plan::Tile& tile = plan.tile(tile_index);
    Piece gate_piece, up_piece, hidden_piece;
    alignas(64) float observed[TILE_ROWS * OBSERVED_STRIDE];
    for (int64_t i = 0; i < tile.rows; ++i) {
      const int64_t row = plan.token(tile.first + i), next = plan.token(std::min(tile.first + i + 1, tokens - 1));
      float* out = hidden.target(row, column, hidden_piece);
      forward(gate.read(k, row, column, n, gate_piece), up.read(k, row, column, n, up_piece), out,
              observed + i * OBSERVED_STRIDE, n, ahead_of(gate, up, next, column));
      hidden.write(k, row, column, n, out);
    }
    const int64_t at = tile_index * neurons + column;
    if (tile.language < languages)
      k.tile_moments(observed, tile.rows, n, OBSERVED_STRIDE, partials.mean + at, partials.m2 + at,
                     partials.active + at);
  });

  // An element to merge costs a tenth of one to activate.
  parallel(languages * columns, plan.tiles() * neurons < 10 * GRAIN ? 1 : threads, [&](int64_t item) {
    const int64_t language = item / columns, column = item % columns * TILE_COLUMNS;
    const int64_t n = std::min(neurons - column, TILE_COLUMNS), out = language * neurons + column;
    std::fill_n(mean + out, n, 0.0);
    std::fill_n(m2 + out, n, 0.0);
    std::fill_n(active + out, n, 0);
    int64_t before = 0;
    for (int64_t t = plan.first_tile(language); t < plan.first_tile(language + 1); before += plan.tile(t++).rows) {
      const int64_t at = t * neurons + column;
      k.merge(before, mean + out, m2 + out, active + out, plan.tile(t).rows, partials.mean + at, partials.m2 + at,
              partials.active + at, n);
    }
  });
  return 0;
}

int slamkern_swiglu_backward(const void* grad_data, int64_t grad_stride, const void* gate_data, int64_t gate_stride,
                             const void* up_data, int64_t up_stride, void* grad_gate_data, void* grad_up_data,
                             void* hidden_data, int64_t tokens, int64_t neurons, int dtype, int activation, int threads,
                             void*) {
  const Matrix grad(grad_data, grad_stride, dtype), gate(gate_data, gate_stride, dtype);
  const Matrix up(up_data, up_stride, dtype);
  Matrix grad_gate(grad_gate_data, neurons, dtype), grad_up(grad_up_data, neurons, dtype);
  Matrix hidden(hidden_data, neurons, dtype);
  for (Matrix* output : {&grad_gate, &grad_up, &hidden}) output->prepare_output(tokens, neurons, threads);
  const Kernels& k = kernels();
  const auto backward = k.backward[activation];
  for_pieces(tokens, neurons, threads, [&](int64_t first, int64_t last, int64_t column, int64_t n) {
    Piece grad_piece, gate_piece, up_piece, grad_gate_piece, grad_up_piece, hidden_piece;
    for (int64_t row = first; row < last; ++row) {
      float* out_gate = grad_gate.target(row, column, grad_gate_piece);
      float* out_up = grad_up.target(row, column, grad_up_piece);
      float* out_hidden = hidden.target(row, column, hidden_piece);
      backward(grad.read(k, row, column, n, grad_piece), gate.read(k, row, column, n, gate_piece),
               up.read(k, row, column, n, up_piece), out_gate, out_up, out_hidden, n,
               ahead_of(gate, up, std::min(row + 1, tokens - 1), column));
      grad_gate.write(k, row, column, n, out_gate);
      grad_up.write(k, row, column, n, out_up);
      hidden.write(k, row, column, n, out_hidden);
    }
  });
  return 0;
}
