// A small pool of threads. OpenMP is not used: its GNU runtime hangs in a process forked after its
// first parallel region, which is what a data loader's workers are.
#pragma once

namespace mme {

using Task = void (*)(void* context, long begin, long end);

// Run task(context, begin, end) over [0, count) in pieces of `grain`, on up to `threads` threads,
// the caller among them. Which thread gets which piece varies: a task writes only what its range
// owns. A call made while another one runs works on its caller's thread alone.
void parallel(long count, long grain, int threads, Task task, void* context);

// The same for a callable.
template <class F>
void parallel_for(long count, long grain, int threads, const F& body) {
  parallel(
      count, grain, threads,
      [](void* context, long begin, long end) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<F*>(&body));
}

}  // namespace mme
