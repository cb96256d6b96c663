// Runs ops of csrc's CUDA library on buffers of exactly their size: run JOBS INPUTS OUTPUTS
//
// A line of JOBS is a call: op dtype activation observe tokens neurons languages gap skew gated seed. Rows lie `gap`
// elements apart, buffers begin `skew` bytes after what malloc gives. INPUTS and OUTPUTS hold the arrays one after
// another, without gaps.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda.cu"

namespace {

std::FILE *inputs, *outputs;

struct Buffer {
  char *memory, *data;
  size_t row_bytes, distance, rows;

  Buffer(int64_t row_count, int64_t row_size, int64_t row_distance, int64_t skew)
      : row_bytes(row_size), distance(row_distance), rows(row_count) {
    const size_t bytes = rows ? (rows - 1) * distance + row_bytes : 0;
    memory = static_cast<char*>(std::malloc(skew + bytes));
    std::memset(memory, 0xff, skew + bytes);
    data = memory + skew;
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(memory); }
  void read() {
    for (size_t i = 0; i < rows; ++i)
      if (std::fread(data + i * distance, 1, row_bytes, inputs) != row_bytes) std::exit(4);
  }
  void write() const {
    for (size_t i = 0; i < rows; ++i) std::fwrite(data + i * distance, 1, row_bytes, outputs);
  }
};

void expect(int error) {
  if (!error) return;
  std::fprintf(stderr, "CUDA error %d\n", error);
  std::exit(5);
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* const jobs = std::fopen(arguments[1], "r");
  inputs = std::fopen(arguments[2], "rb"), outputs = std::fopen(arguments[3], "wb");
  char op[16];
  int dtype, activation, observe, gated;
  unsigned seed;
  long long tokens, neurons, languages, gap, skew;
  while (std::fscanf(jobs, "%15s %d %d %d %lld %lld %lld %lld %lld %d %u", op, &dtype, &activation, &observe, &tokens,
                     &neurons, &languages, &gap, &skew, &gated, &seed) == 11) {
    shim::set_order(seed);
    const int64_t size = dtype == SLAMKERN_FLOAT32 ? 4 : 2, row = neurons * size, stride = neurons + gap;
    const auto matrix = [&](int64_t distance) { return Buffer(tokens, row, distance * size, skew); };
    Buffer gate = matrix(stride), up = matrix(stride), hidden = matrix(neurons);
    gate.read();
    if (gated) up.read();
    const void* const up_data = gated ? up.data : nullptr;
    if (std::strcmp(op, "swiglu") == 0) {
      expect(slamkern_swiglu(gate.data, stride, up_data, stride, hidden.data, neurons, tokens, neurons, dtype,
                             activation, 0, nullptr));
      hidden.write();
    } else if (std::strcmp(op, "stats") == 0 || std::strcmp(op, "planned") == 0) {
      Buffer ids(1, 4 * tokens, 0, 0), count(1, 8 * languages, 0, 0);
      Buffer mean(languages, 8 * neurons, 8 * neurons, 0), m2(languages, 8 * neurons, 8 * neurons, 0);
      Buffer active(languages, 8 * neurons, 8 * neurons, 0);
      Buffer workspace(1, slamkern_stats_workspace(tokens, neurons, languages), 0, 0);
      ids.read();
      const auto* language_ids = reinterpret_cast<const int32_t*>(ids.data);
      auto* const counts = reinterpret_cast<int64_t*>(count.data);
      const auto statistics = [&](const int32_t* order) {
        expect(slamkern_swiglu_stats(gate.data, stride, up_data, stride, hidden.data, neurons, order, tokens, neurons,
                                     languages, dtype, activation, observe, counts,
                                     reinterpret_cast<double*>(mean.data), reinterpret_cast<double*>(m2.data),
                                     reinterpret_cast<int64_t*>(active.data), workspace.data, 0, nullptr));
      };
      if (std::strcmp(op, "planned") == 0) {  // two layers of one plan
        expect(slamkern_stats_plan(language_ids, tokens, languages, counts, workspace.data, nullptr));
        std::memset(ids.data, 0xff, 4 * tokens);
        statistics(nullptr);
        statistics(nullptr);
      } else {
        statistics(language_ids);
      }
      for (const Buffer* output : {&hidden, &count, &mean, &m2, &active}) output->write();
    } else {
      Buffer grad = matrix(stride), grad_gate = matrix(neurons), grad_up = matrix(neurons);
      grad.read();
      expect(slamkern_swiglu_backward(grad.data, stride, gate.data, stride, up_data, stride, grad_gate.data,
                                      gated ? grad_up.data : nullptr, hidden.data, tokens, neurons, dtype, activation,
                                      0, nullptr));
      grad_gate.write();
      if (gated) grad_up.write();
      hidden.write();
    }
  }
  std::fclose(outputs);
  return 0;
}
