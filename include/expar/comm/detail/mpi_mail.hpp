// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <expar/comm/detail/mpi_duplicate.hpp>

namespace expar::inline v0::detail {

/// What is on its way of one exchange: of each kind and peer one message at most. Even kinds come
/// in.
struct mpi_box {
  mpi_box(std::size_t kinds, std::size_t peers) { make_room(kinds, peers); }
  void make_room(std::size_t kinds, std::size_t peers) {
    requests.resize(kinds * peers, MPI_REQUEST_NULL);
    completed.resize(requests.size()), statuses.resize(requests.size());
  }

  std::vector<MPI_Request> requests;  // of a kind and a peer at kind * peers + peer
  std::vector<int> completed;
  std::vector<MPI_Status> statuses;
  std::size_t active = 0, pending = 0;  // the first so many may be on their way; so many are
};

/// Messages among some ranks of a duplicate, until one of these does not come. Then those who find
/// out tell each other, so that they name the same rank, and nothing more is sent or received.
class mpi_mail {
 public:
  /// What may be on its way to or from a peer, one of each at a time.
  enum kind : std::size_t { head_in, head_out, piece_in, piece_out, kinds };

  /// `members`: the rank in the duplicate of each rank here.
  mpi_mail(std::shared_ptr<mpi_duplicate> comm, std::vector<int> members, std::size_t rank,
           std::chrono::milliseconds deadline, int generation = 0)
      : comm_(std::move(comm)),
        members_(std::move(members)),
        rank_(rank),
        deadline_(deadline),
        first_tag_(4 * generation),
        box_(kinds, size()),
        heard_(size()),
        late_(size(), -1) {
    for (int member : members_) among_ = (among_ ^ static_cast<std::uint32_t>(member)) * 16777619u;
  }

  /// The same ranks without one.
  mpi_mail without(std::size_t lost) const {
    std::vector<int> others = members_;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(lost));
    return {comm_, std::move(others), rank_ - (rank_ > lost), deadline_, comm_->next_generation()};
  }

  std::size_t size() const noexcept { return members_.size(); }
  std::size_t rank() const noexcept { return rank_; }
  MPI_Comm native_handle() const noexcept { return comm_->get(); }
  /// A number by which to tell these ranks from others.
  std::uint32_t among() const noexcept { return among_; }
  /// A rank is lost: what was on its way then is MPI's for ever, and so is this object.
  bool dead() const noexcept { return lost_.has_value(); }

  /// Begins a collective, or throws what ended the mail.
  void begin(char const* operation) {
    name(operation);
    box_.pending = 0;
    box_.active = piece_in * size();
  }
  /// Of what is waited for now; throws what ended the mail.
  void name(char const* operation) {
    if (lost_) throw *lost_;
    operation_ = operation;
  }
  void receive(kind k, std::size_t peer, void* to, std::size_t bytes) {
    if (k >= piece_in) box_.active = box_.requests.size();
    receive(box_, k, tag(k), peer, to, bytes);
  }
  void send(kind k, std::size_t peer, void const* from, std::size_t bytes) {
    if (k >= piece_in) box_.active = box_.requests.size();
    send(box_, k, tag(k), peer, from, bytes);
  }
  void receive(mpi_box& box, std::size_t which, int tag, std::size_t peer, void* to,
               std::size_t bytes) {
    expect_success("MPI_Irecv from", peer,
                   MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, members_[peer], tag,
                             comm_->get(), request(box, which, peer)));
  }
  void send(mpi_box& box, std::size_t which, int tag, std::size_t peer, void const* from,
            std::size_t bytes) {
    expect_success("MPI_Isend to", peer,
                   MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, members_[peer], tag,
                             comm_->get(), request(box, which, peer)));
  }
  /// Of what is started now and waited for later: messages of a pair keep their order.
  int tag_of_tickets() const { return first_tag_ + 3; }

  /// Returns when nothing of the collective is on its way, or throws expar::lost_rank. Calls
  /// complete(kind, peer) for each message, which may send and receive more, and once idle(), which
  /// does not throw, when there is nothing else to do.
  template <class Complete, class Idle>
  void wait(Complete complete, Idle idle) {
    wait(
        box_,
        [&](std::size_t k, std::size_t peer, MPI_Status const&) {
          complete(static_cast<kind>(k), peer);
        },
        idle);
  }
  /// The same of another box: complete(kind, peer, status).
  template <class Complete, class Idle>
  void wait(mpi_box& box, Complete complete, Idle idle) {
    double begun = MPI_Wtime();
    bool idled = false;
    for (double last = begun; box.pending != 0;) {
      bool const moved = advance(box, complete);
      double const now = MPI_Wtime();
      if (moved) {
        last = now;
      } else if (now - last > spin) {
        if (!std::exchange(idled, true)) {
          idle();
          begun = MPI_Wtime();
          heard_.assign(size(), begun);
        }
        give_up_on_the_late(box, begun);
        std::this_thread::yield();
      }
    }
    if (!idled) idle();
  }

 private:
  static constexpr double spin = 50e-6;  // seconds; then others get the core

  int tag(kind k) const { return first_tag_ + (k >= piece_in); }
  int tag_of_notes() const { return first_tag_ + 2; }
  MPI_Request* request(mpi_box& box, std::size_t which, std::size_t peer) {
    ++box.pending;
    return &box.requests[which * size() + peer];
  }
  static std::size_t unsigned_of(int i) { return static_cast<std::size_t>(i); }

  // Whether something is complete that was not before.
  template <class Complete>
  bool advance(mpi_box& box, Complete complete) {
    int n = 0;
    int const code = MPI_Testsome(static_cast<int>(box.active), box.requests.data(), &n,
                                  box.completed.data(), box.statuses.data());
    if (code != MPI_SUCCESS) [[unlikely]]
      find_error(box, code, unsigned_of(n));
    for (std::size_t i = 0; i < unsigned_of(n); ++i) {
      std::size_t const at = unsigned_of(box.completed[i]), peer = at % size();
      --box.pending;
      heard_[peer] = MPI_Wtime();
      complete(at / size(), peer, box.statuses[i]);
    }
    return n > 0;
  }
  [[gnu::cold]] void find_error(mpi_box const& box, int code, std::size_t n) {
    int what = MPI_SUCCESS;
    MPI_Error_class(code, &what);
    std::size_t first = 0;  // that is on its way, where MPI does not say which it means
    while (box.requests[first] == MPI_REQUEST_NULL && first + 1 < box.requests.size()) ++first;
    if (what != MPI_ERR_IN_STATUS) expect_success("waiting for", first % size(), code);
    for (std::size_t i = 0; i < n; ++i) {
      std::size_t const at = unsigned_of(box.completed[i]);
      bool const in = at / size() % 2 == 0;
      expect_success(in ? "receiving from" : "sending to", at % size(), box.statuses[i].MPI_ERROR);
    }
  }
  void expect_success(char const* what, std::size_t peer, int code) {
    if (code == MPI_SUCCESS) [[likely]]
      return;
    tell(peer);
    lose(peer, ": ", what, " rank ", peer, " gave error ", code, " (", mpi_text(code), ")");
  }

  // A peer is late if something of it is on its way and nothing came for the deadline.
  void give_up_on_the_late(mpi_box const& box, double begun) {
    asked_ = (asked_ + 1) % size();
    if (hears_from(asked_)) give_up(unsigned_of(late_[asked_]));
    double const now = MPI_Wtime(), patience = mpi_duplicate::seconds(deadline_);
    if (now - begun < patience) return;
    for (std::size_t i = 0; i < box.requests.size(); ++i)
      if (box.requests[i] != MPI_REQUEST_NULL && now - heard_[i % size()] >= patience)
        give_up(i % size());
  }

  // Where a rank ends in the middle of a collective, the others may be one apart, and wait for each
  // other too. So who gives up tells the others, and names one that tells nothing.
  [[noreturn, gnu::cold]] void give_up(std::size_t late) {
    tell(late);
    double const until = MPI_Wtime() + mpi_duplicate::seconds(deadline_) / 2;
    std::size_t silent = 0, lowest = late;
    do {
      silent = 0, lowest = late;
      for (std::size_t peer = size(); peer-- > 0;)
        if (peer != rank_ && !hears_from(peer)) ++silent, lowest = peer;
      std::this_thread::yield();
    } while (silent > 1 && MPI_Wtime() < until);
    if (lowest != rank_)
      lose(lowest, ": rank ", lowest, " did not come within ", deadline_.count(), " ms");
    std::size_t const other = rank_ == 0 ? 1 : 0;
    lose(other, ": rank ", other, " gave up rank ", rank_, ", which did not come within ",
         deadline_.count(), " ms");
  }
  void tell(std::size_t late) {
    late_[rank_] = static_cast<int>(late);
    for (std::size_t peer = 0; peer < size(); ++peer) {
      MPI_Request note;
      if (peer != rank_ && MPI_Isend(&late_[rank_], 1, MPI_INT, members_[peer], tag_of_notes(),
                                     comm_->get(), &note) == MPI_SUCCESS)
        MPI_Request_free(&note);
    }
  }
  bool hears_from(std::size_t peer) {
    int const from = members_[peer], tag = tag_of_notes();
    int there = 0;
    if (peer != rank_ && late_[peer] < 0 &&
        MPI_Iprobe(from, tag, comm_->get(), &there, MPI_STATUS_IGNORE) == MPI_SUCCESS && there != 0)
      MPI_Recv(&late_[peer], 1, MPI_INT, from, tag, comm_->get(), MPI_STATUS_IGNORE);
    return late_[peer] >= 0;
  }
  template <class... Parts>
  [[noreturn, gnu::cold]] void lose(std::size_t peer, Parts const&... parts) {
    lost_.emplace(static_cast<int>(peer), sentence("expar: ", operation_, parts...));
    throw *lost_;
  }

  std::shared_ptr<mpi_duplicate> comm_;
  std::vector<int> members_;
  std::size_t rank_;
  std::chrono::milliseconds deadline_;
  int first_tag_;
  std::uint32_t among_ = 2166136261u;
  std::optional<lost_rank> lost_;
  char const* operation_ = "";

  mpi_box box_;                // of the collective
  std::vector<double> heard_;  // when something of each peer was complete last
  std::vector<int> late_;      // the rank that a rank gave up, or -1
  std::size_t asked_ = 0;
};

}  // namespace expar::inline v0::detail
