// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <utility>

namespace expar::inline v0::detail {

/// What is counted by its owners.
class counted {
  template <class>
  friend class shared;
  mutable std::atomic<int> owners_{1};
};

/// A T, derived from `counted`, that lives as long as one of its owners; std::shared_ptr would
/// bring streams with it.
template <class T>
class shared {
 public:
  shared() = default;
  /// Takes what `new` made.
  explicit shared(T* made) noexcept : at_(made) {}
  /// One more owner of what has owners.
  static shared one_more(T* of) noexcept {
    shared s(of);
    if (of != nullptr) s.count().fetch_add(1, std::memory_order_relaxed);
    return s;
  }
  shared(shared const& other) noexcept : shared(one_more(other.at_)) {}
  shared(shared&& other) noexcept : at_(std::exchange(other.at_, nullptr)) {}
  shared& operator=(shared other) noexcept {
    std::swap(at_, other.at_);
    return *this;
  }
  ~shared() {
    if (at_ != nullptr && count().fetch_sub(1, std::memory_order_acq_rel) == 1) delete at_;
  }
  T& operator*() const noexcept { return *at_; }
  T* operator->() const noexcept { return at_; }
  T* get() const noexcept { return at_; }

 private:
  std::atomic<int>& count() const noexcept { return static_cast<counted const&>(*at_).owners_; }

  T* at_ = nullptr;
};

}  // namespace expar::inline v0::detail
