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

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fibre {
  ucontext_t context;
  State state;
  std::vector<char> stack = std::vector<char>(kStack);
};

std::vector<Fibre> fibres;
std::vector<char> slots, dynamic;
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

void run_block(size_t threads, bool reverse) {
  for (size_t i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    fibre.state = State::kReady;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, enter, 0);
  }
  for (;;) {
    bool moved = false, done = true;
    for (size_t i = 0; i < threads; ++i) {
      running = reverse ? threads - 1 - i : i;
      if (fibres[running].state == State::kReady) {
        threadIdx = dim3(static_cast<unsigned>(running));
        swapcontext(&scheduler, &fibres[running].context);
        moved = true;
      }
      done = done && fibres[running].state == State::kDone;
    }
    if (done) return;
    for (size_t first = 0; first < threads; first += kWarp) {
      moved |= release(first, first + kWarp < threads ? first + kWarp : threads, State::kAtWarp);
    }
    moved |= release(0, threads, State::kAtBlock);
    if (!moved) throw std::runtime_error("emulator: threads wait at different barriers");
  }
}

}  // namespace

void* dynamic_shared() { return dynamic.data(); }
void wait_for_warp() { yield(State::kAtWarp); }
void wait_for_block() { yield(State::kAtBlock); }
int lane() { return static_cast<int>(running % kWarp); }
char* warp_slot(int lane) { return slots.data() + (running / kWarp * kWarp + lane) * 16; }

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread) {
  const char* order = std::getenv("MME_EMULATOR_REVERSE");
  const size_t threads = block.x;
  if (fibres.size() < threads) fibres = std::vector<Fibre>(threads);
  slots.assign((threads + kWarp) * 16, '\xff');
  dynamic.assign(shared, '\xff');
  body = &thread, gridDim = grid, blockDim = block;
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = dim3(b);
    poison(dynamic.data(), dynamic.data() + shared);
    poison(__start_emulated_shared, __stop_emulated_shared);
    run_block(threads, order && *order == '1');
  }
}

}  // namespace emulator
