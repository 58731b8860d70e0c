// Fibres and barriers of the emulator; see cuda_runtime.h.
#include <ucontext.h>

#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

extern char __start_emulated_shared[], __stop_emulated_shared[];

namespace emulator {
namespace {

constexpr size_t kStack = 64 * 1024;

enum class State { kReady, kAtWarp, kAtBlock, kAtCluster, kDone };

struct Fibre {
  ucontext_t context;
  State state;
  int turn;  // which of the two slots it exchanges by
  std::vector<char> stack = std::vector<char>(kStack);
};

std::vector<Fibre> fibres;  // of all blocks of a cluster, one after another
std::vector<char> slots, dynamic;
size_t shared_bytes;  // of a block's dynamic memory, rounded up to where the next one's begins
ucontext_t scheduler;
size_t running;
const std::function<void()>* body;

void enter() {
  (*body)();
  fibres[running].state = State::kDone;
  swapcontext(&fibres[running].context, &scheduler);
}

void yield(State state) {
  const size_t self = running;
  fibres[self].state = state;
  swapcontext(&fibres[self].context, &scheduler);
}

// Lets the threads [first, last) go on if all that still run wait at `barrier`.
bool release(size_t first, size_t last, State barrier) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    if (fibres[i].state == State::kDone) continue;
    if (fibres[i].state != barrier) return false;
    any = true;
  }
  for (size_t i = first; any && i < last; ++i) {
    if (fibres[i].state == barrier) fibres[i].state = State::kReady;
  }
  return any;
}

void poison(char* first, char* last) { std::memset(first, 0xff, last - first); }

void run_cluster(unsigned first_block, unsigned blocks, size_t threads, bool reverse) {
  const size_t all = blocks * threads;
  for (size_t i = 0; i < all; ++i) {
    Fibre& fibre = fibres[i];
    fibre.state = State::kReady, fibre.turn = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, enter, 0);
  }
  for (;;) {
    bool moved = false, done = true;
    for (size_t i = 0; i < all; ++i) {
      running = reverse ? all - 1 - i : i;
      if (fibres[running].state == State::kReady) {
        threadIdx = dim3(static_cast<unsigned>(running % threads));
        blockIdx = dim3(first_block + static_cast<unsigned>(running / threads));
        swapcontext(&scheduler, &fibres[running].context);
        moved = true;
      }
      done = done && fibres[running].state == State::kDone;
    }
    if (done) return;
    for (size_t block = 0; block < all; block += threads) {
      const size_t end = block + threads;
      for (size_t first = block; first < end; first += kWarp) {
        moved |= release(first, first + kWarp < end ? first + kWarp : end, State::kAtWarp);
      }
      moved |= release(block, end, State::kAtBlock);
    }
    moved |= release(0, all, State::kAtCluster);
    if (!moved) throw std::runtime_error("emulator: threads wait at different barriers");
  }
}

bool poisoned(const char* first, const char* last) {
  for (; first < last; ++first) {
    if (*first != '\xff') return false;
  }
  return true;
}

}  // namespace

void* dynamic_shared() { return dynamic.data() + running / blockDim.x * shared_bytes; }
void wait_for_warp() {
  yield(State::kAtWarp);
  fibres[running].turn ^= 1;
}
void wait_for_block() { yield(State::kAtBlock); }
void wait_for_cluster() { yield(State::kAtCluster); }
int lane() { return static_cast<int>(running % blockDim.x % kWarp); }
char* warp_slot(int lane) {
  const size_t thread = running - static_cast<size_t>(emulator::lane()) + lane;
  return slots.data() + (2 * thread + fibres[running].turn) * 16;
}

bool run(dim3 grid, dim3 block, unsigned cluster, size_t shared,
         const std::function<void()>& thread) {
  const char* order = std::getenv("MME_EMULATOR_REVERSE");
  const size_t threads = block.x;
  if (fibres.size() < cluster * threads) fibres = std::vector<Fibre>(cluster * threads);
  slots.assign((cluster * threads + kWarp) * 32, '\xff');
  shared_bytes = (shared + 127) / 128 * 128;
  dynamic.assign(cluster * shared_bytes, '\xff');
  body = &thread, gridDim = grid, blockDim = block;
  for (unsigned b = 0; b < grid.x; b += cluster) {
    poison(dynamic.data(), dynamic.data() + dynamic.size());
    poison(__start_emulated_shared, __stop_emulated_shared);
    run_cluster(b, cluster, threads, order && *order == '1');
    if (cluster > 1 && !poisoned(__start_emulated_shared, __stop_emulated_shared)) return false;
  }
  return true;
}

}  // namespace emulator
