// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory_resource>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/exchange/batch_state.hpp>
#include <expar/exchange/meeting.hpp>

namespace expar_test {

/// What a transport is where ranks meet: it brings numbers, and no rows.
class words_alone {
 public:
  static constexpr expar::index_t numbers_before = expar::detail::numbers_of_word;
  static constexpr bool checks_sizes = true, reaches_peers = false, has_hops = false;

  explicit words_alone(expar::thread_communicator& comm)
      : comm_(comm),
        own_(200),
        all_(own_.size() * static_cast<std::size_t>(comm.size())),
        pool_(new expar::detail::local_sides(std::pmr::get_default_resource())) {
    agreed_.reserve(comm.size());
  }

  expar::thread_communicator& comm() { return comm_; }
  expar::detail::agreement& agreed() { return agreed_; }
  std::uint64_t& batches() { return batches_; }
  expar::detail::shared<expar::detail::side_pool> pool() const { return pool_; }
  std::uint64_t* own_numbers() { return own_.data(); }
  void say(expar::detail::word& w, std::uint64_t*, expar::detail::batch_state const*) const {
    w.batches = batches_;
  }
  template <class Wrong>
  std::uint64_t const* gather(expar::host_context const& ctx, expar::detail::word& mine,
                              Wrong& wrong, expar::index_t count, expar::index_t& pitch) {
    pitch = count;
    agreed_.gather(ctx, comm_, mine, wrong, own_.data(), all_.data(), count);
    return all_.data();
  }

 private:
  expar::thread_communicator& comm_;
  expar::detail::agreement agreed_{std::pmr::get_default_resource()};
  std::vector<std::uint64_t> own_, all_;
  expar::detail::shared<expar::detail::side_pool> pool_;
  std::uint64_t batches_ = 0;
};

}  // namespace expar_test
