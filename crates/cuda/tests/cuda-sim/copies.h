// Asynchronous copies on a host: they arrive only when they are waited for.
#pragma once

#include <cstring>
#include <deque>
#include <vector>

struct Copy {
  u16* to;
  u16 numbers[8];
};
inline thread_local std::vector<Copy> ek_open_copies;
inline thread_local std::deque<std::vector<Copy>> ek_sealed_copies;

static inline void copy_chunk(u16* to, const u16* from, bool there) {
  Copy copy = {to, {}};
  if (there) std::memcpy(copy.numbers, from, 16);
  // The destination holds invalid data until the copy arrives.
  std::memset(to, 0x7f, 16);
  ek_open_copies.push_back(copy);
}
static inline void seal_copies() {
  ek_sealed_copies.push_back(std::move(ek_open_copies));
  ek_open_copies.clear();
}
template <u32 N> static inline void await_copies() {
  while (ek_sealed_copies.size() > N) {
    for (const Copy& copy : ek_sealed_copies.front()) std::memcpy(copy.to, copy.numbers, 16);
    ek_sealed_copies.pop_front();
  }
}
