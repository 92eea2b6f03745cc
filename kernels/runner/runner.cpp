// The scheduler behind runner.h: fibers, barriers, exchanges, pages that cannot be touched.
#include "runner.h"
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

namespace runner {

thread_local const Thread *self;
thread_local uint3 block, block_size, grid_size;
thread_local unsigned char *shared;

namespace {

constexpr size_t STACK = 96 << 10;
constexpr size_t PAGE = 4096;

enum class Wait { Run, Barrier, Warp, Done };

struct Fiber : Thread {
  Wait wait;
  int line;
  unsigned mask, source;
  uint32_t value, result;
  bool bit;
  bool entered;
  ucontext_t first;
  jmp_buf at;
};

struct Run {
  std::vector<Fiber> fibers;
  unsigned char *stacks;
  void (*body)(const void *);
  const void *args;
  sigjmp_buf home;
  jmp_buf main;
  uint64_t seed;
  unsigned schedule;
  char *error;
  size_t error_len;
};

thread_local Run *run;
thread_local Fiber *current;

// A page that cannot be touched, a trap that the compiler set, a division by zero.
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
struct sigaction before[5];

// xorshift64*.
unsigned below(uint64_t &seed, unsigned n) {
  seed ^= seed >> 12;
  seed ^= seed << 25;
  seed ^= seed >> 27;
  return static_cast<unsigned>((seed * 0x2545F4914F6CDD1Dull) >> 33) % n;
}

// Places of n things that run one after the other under the schedule.
void order(Run &r, unsigned n, unsigned *o) {
  for (unsigned i = 0; i < n; i++)
    o[i] = r.schedule == 1 ? n - 1 - i : i;
  if (r.schedule > 1)
    for (unsigned i = n; i > 1; i--)
      std::swap(o[i - 1], o[below(r.seed, i)]);
}

[[noreturn]] void fail(const char *what, int line) {
  const Fiber *f = current;
  if (f)
    snprintf(run->error, run->error_len, "%s at line %d, block (%u, %u, %u), thread %u", what, line, block.x, block.y,
             block.z, f->thread.x);
  else
    snprintf(run->error, run->error_len, "%s, block (%u, %u, %u)", what, block.x, block.y, block.z);
  siglongjmp(run->home, 1);
}

void on_fault(int signal, siginfo_t *info, void *) {
  if (!run || !current) {
    for (int i = 0; i < 5; i++)
      if (SIGNALS[i] == signal)
        sigaction(signal, &before[i], nullptr);
    return;
  }
  const char *what = signal == SIGFPE                        ? "a division by zero"
                     : signal == SIGSEGV || signal == SIGBUS ? "access outside a buffer"
                                                             : "a misaligned access, an index or a shift out of range";
  snprintf(run->error, run->error_len, "%s, at %p, block (%u, %u, %u), thread %u", what, info->si_addr, block.x,
           block.y, block.z, current->thread.x);
  siglongjmp(run->home, 1);
}

// A fiber lives through all blocks of a launch.
void live() {
  for (;;) {
    run->body(run->args);
    current->wait = Wait::Done;
    if (!_setjmp(current->at))
      _longjmp(run->main, 1);
  }
}

void yield_() {
  if (!_setjmp(current->at))
    _longjmp(run->main, 1);
}

void resume(Fiber &f) {
  current = &f;
  self = &f;
  if (!_setjmp(run->main)) {
    if (f.entered)
      _longjmp(f.at, 1);
    f.entered = true;
    setcontext(&f.first);
  }
  current = nullptr;
}

// Finishes the exchange that lanes of a warp wait in, if all lanes of its mask have come. True if one was.
bool settle(Fiber *warp, unsigned lanes) {
  bool any = false;
  for (unsigned lane = 0; lane < lanes; lane++) {
    Fiber &f = warp[lane];
    if (f.wait != Wait::Warp)
      continue;
    if (!(f.mask >> lane & 1)) {
      current = &f;
      fail("a lane outside its own mask", f.line);
    }
    bool all = true;
    unsigned bits = 0;
    for (unsigned other = 0; other < 32; other++) {
      if (!(f.mask >> other & 1))
        continue;
      if (other >= lanes || warp[other].wait == Wait::Done) {
        current = &f;
        fail("an exchange with a lane that is not there", f.line);
      }
      const Fiber &o = warp[other];
      all = all && o.wait == Wait::Warp && o.mask == f.mask && o.line == f.line;
      bits |= unsigned(o.bit) << other;
    }
    if (!all)
      continue;
    for (unsigned other = 0; other < lanes; other++) {
      Fiber &o = warp[other];
      if (!(f.mask >> other & 1))
        continue;
      if (!(f.mask >> (o.source & 31) & 1)) {
        current = &o;
        fail("an exchange with a lane outside the mask", o.line);
      }
    }
    const unsigned mask = f.mask;
    uint32_t values[32];
    for (unsigned other = 0; other < lanes; other++)
      values[other] = warp[other].value;
    for (unsigned other = 0; other < lanes; other++)
      if (mask >> other & 1) {
        warp[other].result = values[warp[other].source & 31];
        warp[other].mask = bits;
        warp[other].wait = Wait::Run;
      }
    any = true;
  }
  return any;
}

void run_block(Run &r) {
  const unsigned threads = static_cast<unsigned>(r.fibers.size()), warps = (threads + 31) / 32;
  for (Fiber &f : r.fibers)
    f.wait = Wait::Run;
  for (;;) {
    // Warps run one after the other up to a barrier, or in turns of random length.
    unsigned at[32];
    order(r, warps, at);
    for (unsigned i = 0; i < warps; i++) {
      const unsigned w = at[i];
      Fiber *warp = &r.fibers[w * 32];
      const unsigned lanes = threads - w * 32 < 32 ? threads - w * 32 : 32;
      do {
        unsigned lane[32];
        order(r, lanes, lane);
        for (unsigned l = 0; l < lanes; l++)
          if (warp[lane[l]].wait == Wait::Run)
            resume(warp[lane[l]]);
        if (!settle(warp, lanes))
          break;
      } while (r.schedule < 2 || below(r.seed, 4));
    }
    unsigned done = 0, barrier = 0, ready = 0;
    const Fiber *first = nullptr;
    for (const Fiber &f : r.fibers) {
      done += f.wait == Wait::Done;
      ready += f.wait == Wait::Run;
      if (f.wait == Wait::Barrier) {
        barrier++;
        if (!first)
          first = &f;
      }
    }
    if (ready)
      continue;
    if (done == threads)
      return;
    current = const_cast<Fiber *>(first);
    if (barrier == threads) {
      for (Fiber &f : r.fibers) {
        if (f.line != first->line)
          fail("threads at different barriers", f.line);
        f.wait = Wait::Run;
      }
      current = nullptr;
      continue;
    }
    fail("a barrier or an exchange that not all threads reach", first ? first->line : 0);
  }
}

} // namespace

void barrier(int line) {
  current->line = line;
  current->wait = Wait::Barrier;
  yield_();
}

uint32_t exchange(unsigned mask, uint32_t value, unsigned source, int line) {
  Fiber *f = current;
  f->mask = mask, f->value = value, f->source = source, f->line = line, f->bit = false;
  f->wait = Wait::Warp;
  yield_();
  return f->result;
}

unsigned ballot(unsigned mask, bool bit, int line) {
  Fiber *f = current;
  f->mask = mask, f->value = 0, f->source = f->lane, f->line = line, f->bit = bit;
  f->wait = Wait::Warp;
  yield_();
  return f->mask;
}

} // namespace runner

using namespace runner;

extern "C" {

// `bytes` of memory between pages that cannot be touched: ending at one, or beginning at one.
void *ssm_guarded(size_t bytes, int at_end) {
  const size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
  auto *p = static_cast<unsigned char *>(
      mmap(nullptr, room + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (p == MAP_FAILED)
    return nullptr;
  if (room && mprotect(p + PAGE, room, PROT_READ | PROT_WRITE)) {
    munmap(p, room + 2 * PAGE);
    return nullptr;
  }
  return p + PAGE + (at_end ? room - bytes : 0);
}

void ssm_release(void *memory, size_t bytes) {
  const size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
  auto at = reinterpret_cast<uintptr_t>(memory);
  // Less than a page lies before the bytes, whichever end they are at.
  munmap(reinterpret_cast<void *>(at / PAGE * PAGE - PAGE), room + 2 * PAGE);
}

// Runs a kernel's body for every thread of the grid. 0, or 1 and what went wrong in `error`.
int ssm_launch(void (*body)(const void *), const void *args, const unsigned *grid, unsigned threads,
               unsigned shared_bytes, unsigned schedule, char *error, size_t error_len) {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    bool all = true;
    for (int i = 0; i < 5; i++)
      all = sigaction(SIGNALS[i], &action, &before[i]) == 0 && all;
    return all;
  }();
  if (!installed || !threads || threads > 1024 || shared_bytes > 227 * 1024) {
    snprintf(error, error_len, "a launch of %u threads and %u bytes of shared memory", threads, shared_bytes);
    return 1;
  }
  Run r;
  r.fibers.resize(threads);
  r.body = body, r.args = args, r.schedule = schedule, r.seed = schedule * 0x9E3779B97F4A7C15ull + 1;
  r.error = error, r.error_len = error_len;
  r.stacks = static_cast<unsigned char *>(
      mmap(nullptr, threads * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (unsigned i = 0; i < threads; i++) {
    Fiber &f = r.fibers[i];
    f.thread = {i, 0, 0};
    f.lane = i % 32, f.warp = i / 32;
    f.entered = false;
    getcontext(&f.first);
    f.first.uc_stack.ss_sp = r.stacks + i * STACK;
    f.first.uc_stack.ss_size = STACK;
    f.first.uc_link = nullptr;
    makecontext(&f.first, live, 0);
  }
  // Aligned as on a device; the page behind it then begins within 16 bytes of its end.
  const size_t room = (shared_bytes + 15) / 16 * 16;
  shared = static_cast<unsigned char *>(ssm_guarded(room, 1));
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {threads, 1, 1};
  std::vector<unsigned> places(static_cast<size_t>(grid[0]) * grid[1] * grid[2]);
  order(r, static_cast<unsigned>(places.size()), places.data());
  run = &r;
  int failed = sigsetjmp(r.home, 1);
  if (!failed) {
    for (unsigned b : places) {
      block = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
      memset(shared, 0xff, room);
      run_block(r);
    }
  }
  run = nullptr;
  current = nullptr;
  ssm_release(shared, room);
  munmap(r.stacks, threads * STACK);
  return failed;
}
}
