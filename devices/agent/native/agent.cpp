#include "agent.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace edgewatt {
namespace {

constexpr int look_ms = look_ns / 1'000'000;
constexpr int64_t grace_ns = second_ns;                   // for the work to end by itself, once the harness has gone
constexpr int64_t deaf_ns = 2 * second_ns;                // asked to end, the agent waits so long for a reader
constexpr int64_t deaf_at_end_ns = 10 * second_ns;        // and where only a beat file counts, so long at the very end
constexpr std::size_t most_waiting_bytes = 64u << 20;     // for a reader that takes nothing; the spool has it all

std::atomic<int> asked{going};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler writes it");

void on_stop(int) {
    int none = going;
    asked.compare_exchange_strong(none, stopped);
}

void on_hangup(int) { asked = orphaned; }

void handle(int signal, void (*handler)(int)) {
    struct sigaction action {};
    action.sa_handler = handler;
    sigaction(signal, &action, nullptr);
}

int64_t read_clock(clockid_t clock) {
    timespec t{};
    clock_gettime(clock, &t);
    return int64_t{t.tv_sec} * second_ns + t.tv_nsec;
}

timespec as_timespec(int64_t t_ns) {
    timespec t{};
    t.tv_sec = static_cast<time_t>(t_ns / second_ns);
    t.tv_nsec = static_cast<long>(t_ns % second_ns);
    return t;
}

std::string taken_from_environment(const char* name) {
    const char* value = std::getenv(name);
    std::string kept = value ? value : "";
    unsetenv(name);
    return kept;
}

}  // namespace

int64_t now_ns() { return read_clock(CLOCK_BOOTTIME); }
int64_t awake_ns() { return read_clock(CLOCK_MONOTONIC); }

int64_t ns(double seconds) {
    return seconds < 9e9 ? static_cast<int64_t>(seconds * 1e9) : std::numeric_limits<int64_t>::max() / 2;
}

std::thread started(std::function<void()> work) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread thread([work = std::move(work)] {
        try {
            work();
        } catch (const std::exception& error) {
            std::fprintf(stderr, "a thread of the agent failed: %s\n", error.what());
            std::abort();
        }
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return thread;
}

std::string text_of(int error) { return std::strerror(error); }

int write_whole(int fd, const char* data, std::size_t size) {
    while (size) {
        const ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        data += n;
        size -= static_cast<std::size_t>(n);
    }
    return 0;
}

double number(const json::Value& job, const char* key, double fallback, double least) {
    for (const auto& member : job.members)
        if (member.first == key) return required(job, key, least);
    return fallback;
}

double required(const json::Value& job, const char* key, double least) {
    const json::Value& value = job[key];
    if (!value.is_number() || value.real < least)
        throw Refused(std::string("job: ") + key + " is " + json::shown(value) + "; wanted a number, at least " + json::number(least));
    return value.real;
}

const std::string& text(const json::Value& job, const char* key) {
    const json::Value& value = job[key];
    if (value.text.empty()) throw Refused(std::string("job: ") + key + " is " + json::shown(value) + "; wanted a text");
    return value.text;
}

std::vector<std::string> names(const json::Value& job, const char* key) {
    const json::Value& value = job[key];
    std::vector<std::string> found;
    bool is_names = value.is(json::Value::Kind::list) || !value.is_set();
    for (const json::Value& item : value.items) {
        is_names = is_names && item.is(json::Value::Kind::text);
        found.push_back(item.text);
    }
    if (!is_names) throw Refused(std::string("job: ") + key + " is " + json::shown(value) + "; wanted a list of names");
    return found;
}

const json::Value& mapping(const json::Value& job, const char* key) {
    const json::Value& value = job[key];
    if (!value.is(json::Value::Kind::object) && value.is_set())
        throw Refused(std::string("job: ") + key + " is " + json::shown(value) + "; wanted an object");
    return value;
}

Agent::Agent(std::string verb, std::string spool_path) : verb_(std::move(verb)), spool_path_(std::move(spool_path)) {
    handle(SIGTERM, on_stop);
    handle(SIGINT, on_stop);
    handle(SIGHUP, on_hangup);
    handle(SIGPIPE, SIG_IGN);
    // The harness may have died before we could ask who our parent is; so it may tell us.
    const pid_t told = std::atoi(taken_from_environment("EDGEWATT_PARENT").c_str());
    parent_ = told ? told : getppid();
    // It may also have made the process group for us alone without our leading it (a shell over ssh leads it).
    owns_group_ = !taken_from_environment("EDGEWATT_GROUP").empty() || getpgrp() == getpid();
    // What a model's library prints must not end up between events: descriptor 1 becomes another name of stderr.
    out_ = fcntl(1, F_DUPFD_CLOEXEC, 3);
    dup2(2, 1);
    struct stat status {};
    if (out_ >= 0 && fstat(out_, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode))) {
        fcntl(out_, F_SETFL, fcntl(out_, F_GETFL) | O_NONBLOCK);  // a full link must not keep the agent from its work
        is_out_blocking_ = false;
        started([this] { pump(); }).detach();
    }
}

void Agent::open_spool() {
    spool_ = open(spool_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (spool_ < 0) throw std::runtime_error(text_of(errno) + ": " + spool_path_);
}

// ---------------------------------------------------------------------------------------------------------------------
// Events

void Agent::emit(const json::Object& event, bool is_last) {
    std::string line = event.str() + "\n";
    const std::lock_guard<std::mutex> guard(lock_);
    if (has_said_last_) return;
    has_said_last_ = is_last;
    if (spool_ >= 0) {
        if (const int error = write_whole(spool_, line.data(), line.size())) {
            std::fprintf(stderr, "spool given up: %s\n", std::strerror(error));
            close(spool_);
            spool_ = -1;
        }
    }
    if (out_ < 0) return;
    waiting_bytes_ += line.size();
    queue_.push_back(std::move(line));
    write_out_locked();
    if (waiting_bytes_ > most_waiting_bytes) give_up_out_locked();
    if (!queue_.empty()) queued_.notify_one();
}

void Agent::give_up_out_locked() {
    out_ = -1;  // not closed: the pump may be waiting for it
    queue_.clear();
    waiting_bytes_ = 0;
    taken_.notify_all();
}

// As much as stdout takes now. Nobody may be listening any more; the spool goes on until the harness is seen to be gone.
void Agent::write_out_locked() {
    while (out_ >= 0 && !queue_.empty()) {
        const std::string& line = queue_.front();
        const ssize_t n = write(out_, line.data() + sent_, line.size() - sent_);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) return give_up_out_locked();
        sent_ += static_cast<std::size_t>(n);
        waiting_bytes_ -= static_cast<std::size_t>(n);
        if (sent_ == line.size()) {
            queue_.pop_front();
            sent_ = 0;
        }
        taken_.notify_all();
    }
}

// Goes on writing what stdout did not take at once.
void Agent::pump() {
    std::unique_lock<std::mutex> guard(lock_);
    while (true) {
        queued_.wait(guard, [this] { return out_ < 0 || !queue_.empty(); });
        if (out_ < 0) return;
        pollfd out{out_, POLLOUT, 0};
        guard.unlock();
        poll(&out, 1, look_ms);
        guard.lock();
        write_out_locked();
    }
}

void Agent::drain() {
    std::unique_lock<std::mutex> guard(lock_);
    int64_t since = 0;
    std::size_t before = waiting_bytes_;
    while (out_ >= 0 && !queue_.empty()) {
        taken_.wait_for(guard, std::chrono::milliseconds(50));
        guard.unlock();
        const Stopping why = look();
        guard.lock();
        if (waiting_bytes_ < before || (!why && (beat_file_.empty() || !has_said_last_))) since = 0;
        else if (!since) since = awake_ns();
        before = waiting_bytes_;
        const int64_t limit = why ? deaf_ns : deaf_at_end_ns;
        if (!queue_.empty() && (why == orphaned || (since && awake_ns() - since > limit))) give_up_out_locked();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// When to end

Stopping Agent::stopping() const { return static_cast<Stopping>(asked.load(std::memory_order_relaxed)); }

Stopping Agent::look() {
    if (stopping() != orphaned && beat_file_.empty() && getppid() != parent_) asked = orphaned;
    return stopping();
}

// Takes a beat file that says something else than before for a beat.
void Agent::look_for_beat() {
    char content[256];
    const int fd = open(beat_file_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    const ssize_t n = read(fd, content, sizeof content);
    close(fd);
    // Empty between a writer's truncating it and its writing: no beat in itself.
    if (n <= 0 || last_beat_ == std::string_view(content, static_cast<std::size_t>(n))) return;
    last_beat_.assign(content, static_cast<std::size_t>(n));
    heard_ns_ = awake_ns();
}

bool Agent::is_overdue() const { return silence_ns_ && awake_ns() - heard_ns_ > silence_ns_; }

void Agent::watch(double silence_s, const std::string& beat_file, bool listens) {
    heard_ns_ = awake_ns();
    listens_ = listens && silence_s > 0;
    if (!beat_file.empty()) {
        handle(SIGHUP, SIG_IGN);  // the link comes and goes
        int early = orphaned;
        asked.compare_exchange_strong(early, going);
        beat_file_ = beat_file;
        look_for_beat();
        heard_ns_ = awake_ns();
    }
    silence_ns_ = ns(silence_s);
    if (listens_) {
        in_ = fcntl(0, F_DUPFD_CLOEXEC, 3);
        const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        dup2(nothing, 0);  // no program we start may take the beats for answers to its questions
        close(nothing);
    }
    started([this] { watch_until_gone(); }).detach();
}

void Agent::watch_until_gone() {
    std::string rest;
    while (look() != orphaned) {
        // A beat may be late because this process or the whole machine was held up: only who is silent at a second look
        // too, after time for what was held up, has gone.
        const bool was_overdue = is_overdue();
        if (!listens_ || in_ < 0 || !listen(rest)) poll(nullptr, 0, look_ms);
        if (!beat_file_.empty()) look_for_beat();
        if (was_overdue && is_overdue()) asked = orphaned;
    }
    const timespec grace = as_timespec(grace_ns);
    nanosleep(&grace, nullptr);
    emit(json::Object("end").add("t_ns", now_ns()).add("reason", "orphaned"), true);
    end_group();
    _exit(0);  // no teardown: the work may be stuck anywhere
}

ssize_t Agent::heard(char* into, std::size_t size, int timeout_ms) {
    pollfd in{in_, POLLIN, 0};
    if (poll(&in, 1, timeout_ms) <= 0) return -1;
    const ssize_t n = read(in.fd, into, size);
    if (n < 0) return errno == EAGAIN || errno == EINTR ? -1 : 0;  // it may be the same socket as stdout
    return n;
}

// Takes what came on stdin after `rest`, the beginning of a line; false if there is nothing to listen to any more.
bool Agent::listen(std::string& rest) {
    char said[4096];
    const ssize_t n = heard(said, sizeof said, look_ms);
    if (n < 0) return true;
    if (n == 0) {
        if (beat_file_.empty()) asked = orphaned;
        in_ = -1;
        return false;
    }
    if (beat_file_.empty()) heard_ns_ = awake_ns();
    rest.append(said, static_cast<std::size_t>(n));
    for (std::size_t end; (end = rest.find('\n')) != std::string::npos; rest.erase(0, end + 1))
        if (rest.compare(0, end, "stop") == 0) on_stop(0);
    rest.resize(std::min<std::size_t>(rest.size(), 5));  // enough to tell a longer line from `stop`
    return true;
}

void Agent::end_group() {
    if (owns_group_) kill(0, SIGKILL);
}

void Agent::sleep_until(int64_t deadline) {
    while (!stopping()) {
        const int64_t now = now_ns();
        if (now >= deadline) return;
        if (deadline - now > look_ns) look();
        const int64_t until = std::min(deadline, now + look_ns);
        const timespec at = as_timespec(until);
        const int error = clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &at, nullptr);
        if (error && error != EINTR) {  // an emulator that cannot sleep on this clock
            const timespec rest = as_timespec(until - now);
            nanosleep(&rest, nullptr);
        }
    }
}

}  // namespace edgewatt
