// Runs independent items on the threads that torch already has.
#pragma once

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace slamkern {

// Calls body(i) for every i in 0..items-1, on up to `threads` threads, in no particular order.
//
// torch's own parallel loops run in the OpenMP team of the calling thread, so GOMP_parallel (which libgomp, libiomp5
// and libomp all export) is looked up among what torch has loaded, and the very same team does the work: no second pool
// whose idle threads spin against torch's. Measured with the op and a torch matmul taking turns (512 x 1536 float32, 2
// threads, 2 busy cores): 16.5 ms of processor time a turn in torch's team, 23.5 ms with a libgomp of our own. Where no
// OpenMP is loaded, threads are started for the call.
template <class Body>
void parallel(int64_t items, int threads, const Body& body) {
  struct Job {
    const Body& body;
    int64_t items;
    std::atomic<int64_t> next;
    static void drain(void* job_pointer) {
      Job& job = *static_cast<Job*>(job_pointer);
      for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.items;) job.body(i);
    }
  } job{body, items, {0}};
  const int team = items < threads ? static_cast<int>(items) : threads;
  if (team <= 1) return Job::drain(&job);

  using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  static const auto gomp_parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (gomp_parallel) return gomp_parallel(Job::drain, &job, static_cast<unsigned>(team), 0);

  std::vector<std::thread> helpers;
  for (int i = 1; i < team; ++i) helpers.emplace_back(Job::drain, &job);
  Job::drain(&job);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace slamkern
