// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <type_traits>

#include <expar/config.hpp>

namespace expar::inline v0 {

/// A piece of work: call it with each of 0 .. n-1, in any order, at once or not. It does not throw.
/// A light reference; what it refers to lives until run() returns.
class task {
 public:
  task() = default;
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, task>) explicit task(F& f) noexcept
      : object_(&f), call_([](void* object, int i) { (*static_cast<F*>(object))(i); }) {}

  void operator()(int i) const { call_(object_, i); }
  explicit operator bool() const noexcept { return call_ != nullptr; }

 private:
  void* object_ = nullptr;
  void (*call_)(void*, int) = nullptr;
};

/// The caller's own pool: `concurrency()` says how many tasks can run at once, and `run(n, t)`
/// calls t(0) .. t(n-1), each once, and returns when all are done.
template <class E>
concept executor = requires(E& e, task t) {
  { e.concurrency() } -> std::convertible_to<int>;
  e.run(1, t);
};

}  // namespace expar::inline v0
