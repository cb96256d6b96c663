// The scheduler behind cuda_runtime.h. Compiled without sanitizers, which are told here what they need to know.
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}

namespace shim {
namespace {

constexpr int WARP = 32, MOST_THREADS = 1024, MOST_SHARED = 48 * 1024, MOST_BLOCKS_Y = 65535, INVALID_CONFIGURATION = 9;
constexpr size_t STACK = size_t{64} << 10;
constexpr unsigned UNORDERED = 1;  // __tsan_switch_to_fiber_no_sync

enum State { READY, AT_BARRIER, AT_EXCHANGE, ENDED };

struct Fiber {
  ucontext_t context;
  State state;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  uint64_t value;
  int line;
};

struct Warp {
  uint64_t values[2][WARP];
  char order[2];  // addresses for __tsan_acquire and __tsan_release, of exchanges in turns
  int turn = 0;
};

unsigned order_seed = 0;
int error = 0;
dim3 grid, block, at;
char* shared;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
char barrier_order[2], kernel_end;
int barrier_turn;
Fiber host;
int running;
const void* host_stack;
size_t host_stack_size;
void (*thread_body)(void*);
void* thread_argument;

char* map(char* where, size_t bytes, int flags) {
  flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  return static_cast<char*>(mmap(where, bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
}

char* stack_of(int thread) {
  static char* const stacks = map(nullptr, STACK * MOST_THREADS, 0);
  return stacks + STACK * thread;
}

void acquire(void* address) {
  if (__tsan_acquire) __tsan_acquire(address);
}
void release(void* address) {
  if (__tsan_release) __tsan_release(address);
}

[[noreturn]] void fail(const char* what, const Fiber& fiber) {
  std::fprintf(stderr, "%s at line %d: thread %d of block (%u, %u)\n", what, fiber.line,
               static_cast<int>(&fiber - fibers.data()), at.x, at.y);
  std::_Exit(3);
}

void enter(int thread) {
  running = thread;
  Fiber& fiber = fibers[thread];
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan, UNORDERED);
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&host.fake_stack, stack_of(thread), STACK);
  swapcontext(&host.context, &fiber.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
}

void leave(State state) {
  Fiber& fiber = fibers[running];
  fiber.state = state;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(host.tsan, UNORDERED);
  void** const fake = state == ENDED ? nullptr : &fiber.fake_stack;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(fake, host_stack, host_stack_size);
  swapcontext(&fiber.context, &host.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
}

void first_entry() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_size);
  thread_body(thread_argument);
  release(&kernel_end);
  leave(ENDED);
}

// Lets the lanes of a warp go on if all of them have come to one exchange; whether they have.
bool finish_exchange(Warp& warp, Fiber* lanes) {
  for (int lane = 0; lane < WARP; ++lane)
    if (lanes[lane].state != AT_EXCHANGE || lanes[lane].line != lanes[0].line) return false;
  for (int lane = 0; lane < WARP; ++lane) {
    warp.values[warp.turn][lane] = lanes[lane].value;
    lanes[lane].state = READY;
  }
  return true;
}

std::vector<int> turns(size_t count, unsigned salt) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (order_seed) std::shuffle(order.begin(), order.end(), std::mt19937(order_seed + salt));
  return order;
}

void run_block() {
  const std::vector<int> order = turns(fibers.size(), at.x + at.y);
  barrier_turn = 0;
  std::fill(warps.begin(), warps.end(), Warp());
  for (size_t thread = 0; thread < fibers.size(); ++thread) {
    Fiber& fiber = fibers[thread];
    fiber.state = READY;
    if (__tsan_create_fiber) {
      map(stack_of(static_cast<int>(thread)), STACK, MAP_FIXED);  // another thread's stack becomes this one's
      fiber.tsan = __tsan_create_fiber(0);
    }
    getcontext(&fiber.context);
    fiber.context.uc_stack = {stack_of(static_cast<int>(thread)), 0, STACK};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, first_entry, 0);
  }
  for (;;) {
    for (const int thread : order)
      if (fibers[thread].state == READY) enter(thread);
    bool any = false;
    for (size_t warp = 0; warp < warps.size(); ++warp) any |= finish_exchange(warps[warp], &fibers[WARP * warp]);
    if (any) continue;
    const Fiber* waiting = nullptr;
    for (const Fiber& fiber : fibers) {
      if (fiber.state == AT_EXCHANGE) fail("a warp waits for lanes that never come", fiber);
      if (fiber.state != AT_BARRIER) continue;
      if (waiting && waiting->line != fiber.line) fail("a barrier that other threads do not reach", *waiting);
      waiting = &fiber;
    }
    if (!waiting) break;
    barrier_turn ^= 1;
    for (Fiber& fiber : fibers)
      if (fiber.state == AT_BARRIER) fiber.state = READY;
  }
  if (__tsan_destroy_fiber)
    for (Fiber& fiber : fibers) __tsan_destroy_fiber(fiber.tsan);
}

}  // namespace

dim3 thread_index() { return dim3(static_cast<unsigned>(running), 0, 0); }
dim3 block_index() { return at; }
dim3 block_size() { return block; }
dim3 grid_size() { return grid; }
void* dynamic_shared() { return shared; }
int last_error() {
  const int last = error;
  error = 0;
  return last;
}
void set_order(unsigned seed) { order_seed = seed; }

void barrier(int line) {
  // Two addresses in turns: who leaves this barrier late must not learn what others did after it.
  char* const address = &barrier_order[barrier_turn];
  fibers[running].line = line;
  release(address);
  leave(AT_BARRIER);
  acquire(address);
}

const uint64_t* exchange(unsigned mask, uint64_t value, bool ordered, int line) {
  Fiber& fiber = fibers[running];
  Warp& warp = warps[running / WARP];
  fiber.value = value;
  fiber.line = line;
  if (mask != 0xffffffffu) fail("an exchange of less than a warp", fiber);
  const int turn = warp.turn;
  if (ordered) release(&warp.order[turn]);
  leave(AT_EXCHANGE);
  warp.turn = turn ^ 1;
  if (ordered) acquire(&warp.order[turn]);
  return warp.values[turn];
}

void run(dim3 grid_dim, dim3 block_dim, size_t shared_bytes, void (*thread)(void*), void* kernel) {
  const size_t threads = size_t{block_dim.x} * block_dim.y * block_dim.z;
  if (threads == 0 || threads % WARP || threads > MOST_THREADS || block_dim.y * block_dim.z != 1 || shared_bytes > MOST_SHARED ||
      grid_dim.x == 0 || grid_dim.y == 0 || grid_dim.y > MOST_BLOCKS_Y || grid_dim.z != 1) {
    error = INVALID_CONFIGURATION;
    return;
  }
  grid = grid_dim, block = block_dim, thread_body = thread, thread_argument = kernel;
  fibers.assign(threads, Fiber());
  warps.assign(threads / WARP, Warp());
  if (__tsan_get_current_fiber) host.tsan = __tsan_get_current_fiber();
  std::vector<char*> used;
  for (const int number : turns(size_t{grid.x} * grid.y, 0)) {
    at = dim3(static_cast<unsigned>(number) % grid.x, static_cast<unsigned>(number) / grid.x, 0);
    shared = static_cast<char*>(std::malloc(shared_bytes));
    std::memset(shared, 0xff, shared_bytes);
    used.push_back(shared);
    run_block();
  }
  acquire(&kernel_end);
  for (char* memory : used) std::free(memory);  // not before: to free it within the kernel would be a race
}

}  // namespace shim
