// What every verb shares: the clock, events, the spool, and when to end (docs/agent-protocol.md).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "json.hpp"

namespace edgewatt {

constexpr int64_t missing = std::numeric_limits<int64_t>::min();  // a reading that failed
constexpr int64_t second_ns = 1'000'000'000;
constexpr int64_t look_ns = second_ns / 4;  // the longest the agent goes without looking whether it should end
constexpr std::size_t most_values = 32768;  // in one event: keeps it far below the length a line may have

// The job cannot be understood or begun; the message is one line for the harness to show.
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Thrown where work is cut short because the agent was asked to end.
struct AskedToEnd {};

enum Stopping : int { going = 0, stopped = 1, orphaned = 2 };

int64_t now_ns();    // on CLOCK_BOOTTIME, that of all stamps
int64_t awake_ns();  // on CLOCK_MONOTONIC, which stands while the device sleeps: for how long nothing was heard
int64_t ns(double seconds);

// A thread that takes no signals: they are for the first one, whose sleep they end.
std::thread started(std::function<void()> work);

// "Input/output error" for EIO.
std::string text_of(int error);

// All of the bytes, or the errno.
int write_whole(int fd, const char* data, std::size_t size);

// The job's number under `key`; Refused if it is none or below `least`.
double number(const json::Value& job, const char* key, double fallback, double least = 0.0);
double required(const json::Value& job, const char* key, double least);
// The job's text, list of texts or object under `key`; Refused if it is something else (a text also if it is empty).
const std::string& text(const json::Value& job, const char* key);
std::vector<std::string> names(const json::Value& job, const char* key);
const json::Value& mapping(const json::Value& job, const char* key);

// One verb at work: where its events go, and whether it was asked to end.
class Agent {
public:
    Agent(std::string verb, std::string spool_path);

    void open_spool();

    // From here on a thread cuts off what does not end by itself when the harness has gone. With `silence_s` something
    // must come on stdin at least so often; with `beat_file` too, its content must change so often, and nothing else
    // says that the harness has gone. `listens`: a line `stop` on stdin asks for the end.
    void watch(double silence_s, const std::string& beat_file, bool listens);

    // One event, in the spool and on its way to stdout; nothing is written after the last.
    void emit(const json::Object& event, bool is_last = false);

    // Waits until stdout has taken all; gives it up once the harness is gone or asked for the end 2 s ago.
    void drain();

    Stopping stopping() const;
    Stopping look();                      // the same, after looking whether the harness is still there
    void sleep_until(int64_t deadline);   // or until soon after the agent was asked to end

    // What came on stdin: its length, 0 at its end, -1 if nothing came in that time.
    ssize_t heard(char* into, std::size_t size, int timeout_ms);

    // Ends this process and what it started, if the group is its own: nobody is left who would.
    void end_group();

private:
    bool is_overdue() const;
    void look_for_beat();
    bool listen(std::string& rest);
    void watch_until_gone();
    void pump();
    void write_out_locked();
    void give_up_out_locked();

    std::string verb_, spool_path_, beat_file_, last_beat_;
    pid_t parent_;
    bool owns_group_;
    int64_t heard_ns_ = 0, silence_ns_ = 0;  // a silence of 0: nothing is to be heard
    std::atomic<int> in_{0};
    bool listens_ = false;
    std::mutex lock_;
    std::condition_variable queued_, taken_;
    std::deque<std::string> queue_;  // what stdout has not taken yet
    std::size_t sent_ = 0;           // of its first line
    std::size_t waiting_bytes_ = 0;
    int out_ = -1, spool_ = -1;
    bool is_out_blocking_ = true, has_said_last_ = false;
};

}  // namespace edgewatt
