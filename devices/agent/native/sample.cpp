#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "numbers.hpp"
#include "verbs.hpp"

namespace edgewatt {
namespace {

constexpr std::size_t short_bytes = 64;        // of a file that holds one number or word
constexpr std::size_t file_bytes = 16 << 10;   // of a file with fields
constexpr std::size_t output_bytes = 64 << 10; // of a program

// One column: which number of what was read, and how often there was none. Nothing here allocates while sampling,
// unless what went wrong changes.
struct Column {
    std::string name;
    std::vector<std::string> words;
    std::string line;
    int number = -1, decimals = 0;
    bool is_scaled = false;
    int64_t failures = 0;
    std::string error;
    std::size_t error_of = 0;  // what `error` was made from: it is made anew only if that changes

    int64_t fail(std::size_t kind, std::string_view about) {
        ++failures;
        const std::size_t cause = std::hash<std::string_view>{}(about) * 31 + kind;
        if (failures > 1 && cause == error_of) return missing;
        error_of = cause;
        const std::string text(about.substr(0, 60));
        switch (kind) {
            case 0: error = text; break;
            case 1: error = about.empty() ? "empty" : "no integer: " + json::in_quotes(text); break;
            case 2: error = "no line that begins with " + json::in_quotes(line); break;
            case 3: error = "none of the words: " + json::in_quotes(text); break;
            case 4: error = "no such number: " + json::in_quotes(text); break;
        }
        return missing;
    }

    // What a file that is all this column's says.
    int64_t of_file(std::string_view content) {
        if (!words.empty()) {
            const std::string_view word = stripped(content);
            for (std::size_t k = 0; k < words.size(); ++k)
                if (word == words[k]) return static_cast<int64_t>(k);
            return fail(3, content);
        }
        const auto value = is_scaled ? scaled_integer_of(content, decimals) : integer_of(content);
        return value ? *value : fail(1, content);
    }

    // What it is in a text with fields.
    int64_t of_text(std::string_view content) {
        const auto rest = rest_of_line(content, line);
        if (!rest) return fail(2, {});
        const auto value = scaled_integer_of(number_in(*rest, number), decimals);
        return value ? *value : fail(4, *rest);
    }
};

// A file or a program that gives one or more columns.
class Node {
public:
    explicit Node(std::vector<Column> columns) : columns(std::move(columns)) {}
    virtual ~Node() = default;
    virtual void read(int64_t* values) = 0;  // one for each column; `missing` where there is none
    virtual void reopen_if_removed() {}

    std::vector<Column> columns;
};

class File : public Node {
public:
    File(std::string path, bool has_fields, std::vector<Column> columns)
        : Node(std::move(columns)), path_(std::move(path)), has_fields_(has_fields),
          content_(has_fields ? file_bytes : short_bytes), last_(content_.size()) {
        // The kernel's own files stay. Any other may be replaced at every refresh, which shows as a reading that stays.
        char real[PATH_MAX];
        const std::string resolved = realpath(path_.c_str(), real) ? real : path_;
        is_kernels_ = resolved.rfind("/sys/", 0) == 0 || resolved.rfind("/proc/", 0) == 0;
    }
    ~File() override { close_it(); }

    void read(int64_t* values) override {
        int error = fill();
        if (!error && !is_kernels_ && size_ == last_size_ && std::equal(content_.begin(), content_.begin() + static_cast<long>(size_), last_.begin()) && is_removed()) {
            close_it();
            error = fill();
        }
        if (error) {
            close_it();  // gone, or another device behind the same name: opened again at the next sample
            last_size_ = 0;
            for (Column& column : columns) *values++ = column.fail(0, std::strerror(error));
            return;
        }
        const std::string_view content(content_.data(), size_);
        for (Column& column : columns) *values++ = has_fields_ ? column.of_text(content) : column.of_file(content);
        std::swap(content_, last_);
        last_size_ = size_;
    }

    // A file that was deleted or replaced still answers through its old descriptor, for ever the same.
    void reopen_if_removed() override {
        if (fd_ >= 0 && is_removed()) close_it();
    }

private:
    // The file's beginning; the errno.
    int fill() {
        size_ = 0;
        if (fd_ < 0) fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd_ < 0) return errno;
        while (size_ < content_.size()) {
            const ssize_t n = pread(fd_, content_.data() + size_, content_.size() - size_, static_cast<off_t>(size_));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return errno;
            size_ += static_cast<std::size_t>(n);
            if (n == 0 || !has_fields_) break;
        }
        return 0;
    }

    bool is_removed() const {
        struct stat status {};
        return fstat(fd_, &status) == 0 && status.st_nlink == 0;
    }

    void close_it() {
        if (fd_ >= 0) close(fd_);
        fd_ = -1;
    }

    std::string path_;
    bool has_fields_, is_kernels_ = false;
    std::vector<char> content_, last_;
    std::size_t size_ = 0, last_size_ = 0;
    int fd_ = -1;
};

// A program, started anew at each sample; no shell. One that takes too long is ended.
class Program : public Node {
public:
    Program(std::vector<std::string> words, double limit_s, std::vector<Column> columns)
        : Node(std::move(columns)), words_(std::move(words)), limit_ns_(ns(limit_s)), content_(output_bytes) {
        for (std::string& word : words_) argv_.push_back(word.data());
        argv_.push_back(nullptr);
    }

    void read(int64_t* values) override {
        const std::string error = fill();
        const std::string_view content(content_.data(), size_);
        for (Column& column : columns) *values++ = error.empty() ? column.of_text(content) : column.fail(0, error);
    }

private:
    std::string fill() {
        int out[2], why[2];  // `why` carries the errno of an exec that failed, and is closed by one that did not
        size_ = 0;
        if (pipe2(out, O_CLOEXEC)) return text_of(errno);
        if (pipe2(why, O_CLOEXEC)) {
            const int error = errno;
            close(out[0]);
            close(out[1]);
            return text_of(error);
        }
        const pid_t parent = getpid();
        const pid_t pid = fork();
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(127);
            const int nothing = open("/dev/null", O_RDWR);
            dup2(nothing, 0);
            dup2(out[1], 1);
            dup2(nothing, 2);
            signal(SIGPIPE, SIG_DFL);
            signal(SIGHUP, SIG_DFL);
            execvp(argv_[0], argv_.data());
            const int error = errno;
            if (write(why[1], &error, sizeof error) < 0) _exit(126);
            _exit(127);
        }
        const int fork_error = errno;
        close(out[1]);
        close(why[1]);
        std::string text = pid < 0 ? text_of(fork_error) : "";
        int error = 0;
        if (pid > 0) {
            if (::read(why[0], &error, sizeof error) == static_cast<ssize_t>(sizeof error)) text = text_of(error);
            if (text.empty() && !takes_all(out[0])) text = "took longer than " + json::number(static_cast<double>(limit_ns_) * 1e-9) + " s";
            kill(pid, SIGKILL);  // also one that has closed its stdout and stays
            while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
        }
        close(out[0]);
        close(why[0]);
        return text;
    }

    // Reads to the end, or as much as there is room for; false if that takes too long.
    bool takes_all(int fd) {
        const int64_t deadline = now_ns() + limit_ns_;
        while (size_ < content_.size()) {
            const int64_t left = deadline - now_ns();
            pollfd in{fd, POLLIN, 0};
            if (left <= 0) return false;
            if (poll(&in, 1, static_cast<int>(std::min<int64_t>(left / 1'000'000 + 1, 1000))) <= 0) continue;
            const ssize_t n = ::read(fd, content_.data() + size_, content_.size() - size_);
            if (n == 0 || (n < 0 && errno != EINTR)) return true;
            if (n > 0) size_ += static_cast<std::size_t>(n);
        }
        return true;
    }

    std::vector<std::string> words_;
    std::vector<char*> argv_;
    int64_t limit_ns_;
    std::vector<char> content_;
    std::size_t size_ = 0;
};

int whole(const json::Value& value, const char* key, int fallback, int least, int most) {
    const json::Value& given = value[key];
    if (given.is(json::Value::Kind::null)) return fallback;
    if (!given.is(json::Value::Kind::integer) || given.integer < least || given.integer > most)
        throw Refused(std::string("job: ") + key + " is " + json::shown(given) + "; wanted an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return static_cast<int>(given.integer);
}

std::unique_ptr<Node> node_of(const json::Value& told) {
    const bool has_path = told["path"].is(json::Value::Kind::text), has_fields = !told["fields"].is(json::Value::Kind::null);
    std::vector<Column> columns;
    if (!has_fields) {
        Column column;
        column.name = told["name"].is(json::Value::Kind::null) ? told["path"].text : text(told, "name");
        column.words = names(told, "words");
        column.is_scaled = !told["decimals"].is(json::Value::Kind::null);
        column.decimals = whole(told, "decimals", 0, -18, 18);
        columns.push_back(std::move(column));
    } else {
        if (!told["fields"].is(json::Value::Kind::list) || told["fields"].items.empty())
            throw Refused("job: fields is " + json::shown(told["fields"]) + "; wanted a list of objects with a name and a line");
        for (const json::Value& field : told["fields"].items) {
            Column column;
            column.name = text(field, "name");
            if (!field["line"].is(json::Value::Kind::text)) throw Refused("job: line is " + json::shown(field["line"]) + "; wanted a text");
            column.line = field["line"].text;
            column.number = whole(field, "number", -1, -1000, 1000);
            column.decimals = whole(field, "decimals", 0, -18, 18);
            columns.push_back(std::move(column));
        }
    }
    if (has_path) return std::make_unique<File>(told["path"].text, has_fields, std::move(columns));
    std::vector<std::string> words = names(told, "command");
    if (!has_fields) throw Refused("job: a command gives its columns by fields, and this one has none");
    return std::make_unique<Program>(std::move(words), number(told, "limit_s", 5, 0.001), std::move(columns));
}

std::vector<std::unique_ptr<Node>> nodes_of(const json::Value& told) {
    bool is_nodes = told.is(json::Value::Kind::list);
    for (const json::Value& node : told.items) is_nodes = is_nodes && (node["path"].is(json::Value::Kind::text) != node["command"].is_set());
    if (!is_nodes) throw Refused("job: nodes is " + json::shown(told) + "; wanted a list of objects with a path or a command");
    std::vector<std::unique_ptr<Node>> nodes;
    for (const json::Value& node : told.items) nodes.push_back(node_of(node));
    return nodes;
}

// How long things took, counted in bins, so that a day of samples needs no more room than a minute.
class Durations {
public:
    explicit Durations(int64_t step_ns) : step_ns_(step_ns) {}

    void add(int64_t duration_ns) {
        ++bins_[duration_ns / step_ns_];
        ++n;
        longest_ns = std::max(longest_ns, duration_ns);
    }

    // The duration that a share `q` does not exceed, within half a step; NaN without any.
    double quantile_s(double q) const {
        auto rank = static_cast<int64_t>(std::ceil(q * static_cast<double>(n)));
        for (const auto& [bin, count] : bins_)
            if ((rank -= count) <= 0)
                return std::min((static_cast<double>(bin) + 0.5) * static_cast<double>(step_ns_), static_cast<double>(longest_ns)) * 1e-9;
        return NAN;
    }

    int64_t n = 0, longest_ns = 0;

private:
    int64_t step_ns_;
    std::map<int64_t, int64_t> bins_;
};

struct Batch {
    Batch(std::size_t rows, std::size_t columns) : t_ns(rows), read_ns(rows), values(rows * columns) {}

    std::size_t n = 0;
    std::vector<int64_t> t_ns, read_ns, values;
};

// Batches of samples made into events by a thread of their own, so that a slow disk or a full pipe stays beside the
// sampling and does not open a gap in it.
class Frames {
public:
    Frames(Agent& agent, std::size_t rows, std::size_t columns, double gap_limit_s)
        : agent_(agent), rows_(rows), columns_(columns), gap_limit_ns_(ns(gap_limit_s)) {
        for (int k = 0; k < 3; ++k) free_.push_back(std::make_unique<Batch>(rows, columns));
        thread_ = started([this] { write(); });
    }

    // An empty batch; made anew only where the writer is far behind.
    std::unique_ptr<Batch> empty() {
        const std::lock_guard<std::mutex> guard(lock_);
        if (free_.empty()) return std::make_unique<Batch>(rows_, columns_);
        std::unique_ptr<Batch> batch = std::move(free_.back());
        free_.pop_back();
        return batch;
    }

    void add(std::unique_ptr<Batch> batch) {
        if (!batch->n) return;
        {
            const std::lock_guard<std::mutex> guard(lock_);
            full_.push_back(std::move(batch));
        }
        came_.notify_one();
    }

    // Returns when all is written.
    void close() {
        if (!thread_.joinable()) return;
        {
            const std::lock_guard<std::mutex> guard(lock_);
            is_over_ = true;
        }
        came_.notify_one();
        thread_.join();
    }

    ~Frames() { close(); }

    Durations gaps{10'000}, reads{1'000};
    int64_t n = 0, gaps_over_limit = 0, first_ns = 0, last_ns = 0;

private:
    void write() {
        std::unique_lock<std::mutex> guard(lock_);
        while (true) {
            came_.wait(guard, [this] { return is_over_ || !full_.empty(); });
            if (full_.empty()) return;
            std::unique_ptr<Batch> batch = std::move(full_.front());
            full_.pop_front();
            guard.unlock();
            tell(*batch);
            batch->n = 0;
            guard.lock();
            if (free_.size() < 3) free_.push_back(std::move(batch));
        }
    }

    void tell(const Batch& batch) {
        for (std::size_t k = 0; k < batch.n; ++k) {
            if (n) {
                gaps.add(batch.t_ns[k] - last_ns);
                gaps_over_limit += batch.t_ns[k] - last_ns > gap_limit_ns_;
            } else {
                first_ns = batch.t_ns[k];
            }
            reads.add(batch.read_ns[k]);
            last_ns = batch.t_ns[k];
            ++n;
        }
        agent_.emit(json::Object("frames")
                        .add("n", static_cast<int64_t>(batch.n))
                        .add("t_ns", json::base64(batch.t_ns.data(), batch.n * 8))
                        .add("read_ns", json::base64(batch.read_ns.data(), batch.n * 8))
                        .add("values", json::base64(batch.values.data(), batch.n * columns_ * 8))
                        .add("form", "int64"));
    }

    Agent& agent_;
    std::size_t rows_, columns_;
    int64_t gap_limit_ns_;
    std::mutex lock_;
    std::condition_variable came_;
    std::deque<std::unique_ptr<Batch>> free_, full_;
    bool is_over_ = false;
    std::thread thread_;
};

// The best scheduling this thread may have, in words; it goes on without. Programs it starts do not share it.
std::string scheduled_better(int nice_wanted) {
    prctl(PR_SET_TIMERSLACK, 1UL);  // sleep no longer than asked; a phone groups the timers of what it thinks idle
    sched_param parameters{};
    parameters.sched_priority = 1;
    if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &parameters) == 0) return "fifo 1";
    const bool is_set = setpriority(PRIO_PROCESS, 0, nice_wanted) == 0;
    const int error = errno;
    const std::string is = "nice " + std::to_string(getpriority(PRIO_PROCESS, 0));
    return is_set ? is : is + " (" + std::to_string(nice_wanted) + " refused: " + text_of(error) + ")";
}

// Processor time of this process and of the programs it has started and waited for.
double cpu_used_s() {
    double used_s = 0;
    for (const int who : {RUSAGE_SELF, RUSAGE_CHILDREN}) {
        rusage used{};
        getrusage(who, &used);
        used_s += static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    }
    return used_s;
}

std::string told(const std::vector<std::unique_ptr<Node>>& nodes) {
    std::string all;
    for (const auto& node : nodes)
        for (const Column& column : node->columns)
            if (column.failures) all += (all.empty() ? "" : "; ") + column.name + ": " + column.error;
    return all.empty() ? "no column" : all;
}

}  // namespace

void sample(Agent& agent, const json::Value& job) {
    const double rate_hz = number(job, "rate_hz", 100, 1e-3), batch_s = number(job, "batch_s", 1.0);
    const double gap_limit_s = number(job, "gap_limit_s", std::max(3 / rate_hz, 0.05));
    const double duration_s = job["duration_s"].is(json::Value::Kind::null) ? 1e18 : number(job, "duration_s", 0);
    for (const char* kind : {"source", "stream"})
        if (job[kind].is_set())
            throw Refused(std::string("job: ") + kind + " is " + json::shown(job[kind]) + "; the native agent samples nodes alone");
    if (!job["nodes"].is_set()) throw Refused("job: wanted either nodes or a source or a stream to sample");
    std::vector<std::unique_ptr<Node>> nodes = nodes_of(job["nodes"]);
    std::vector<std::string> columns;
    for (const auto& node : nodes)
        for (const Column& column : node->columns) columns.push_back(column.name);
    const bool keeps_scheduling = job["nice"].is(json::Value::Kind::null) && std::any_of(job.members.begin(), job.members.end(), [](const auto& m) { return m.first == "nice"; });
    const int nice_wanted = keeps_scheduling ? 0 : static_cast<int>(std::min(number(job, "nice", -10, -20), 19.0));

    const auto most_rows = std::max<std::size_t>(1, most_values / std::max<std::size_t>(columns.size(), 1));
    const double rows = std::clamp(rate_hz * batch_s * 1.2 + 4, 4.0, static_cast<double>(most_rows));
    Frames frames(agent, static_cast<std::size_t>(rows), columns.size(), gap_limit_s);
    const std::string scheduling = keeps_scheduling ? "untouched" : scheduled_better(nice_wanted);

    const double period_ns = 1e9 / rate_hz;
    const int64_t start = now_ns(), batch_ns = ns(batch_s), duration_ns = ns(duration_s);
    const double cpu_s = cpu_used_s();
    int64_t batch_start = start, looked = start, skipped = 0, k = 0;
    std::unique_ptr<Batch> batch = frames.empty();
    while (true) {
        agent.sleep_until(start + static_cast<int64_t>(std::ceil(static_cast<double>(k) * period_ns)));
        // Asked to end, it reads once more: held up until now, it may not have read since what is measured was over.
        const bool is_last = agent.stopping() != going;
        if (is_last && (k == 0 || agent.stopping() == orphaned)) break;
        int64_t* row = batch->values.data() + batch->n * columns.size();
        int64_t* column = row;
        const int64_t before = now_ns();
        for (const auto& node : nodes) {
            node->read(column);
            column += node->columns.size();
        }
        const int64_t after = now_ns();
        batch->t_ns[batch->n] = before + (after - before) / 2;
        batch->read_ns[batch->n] = after - before;
        ++batch->n;
        if (k == 0) {
            if (std::all_of(row, column, [](int64_t v) { return v == missing; })) throw Refused("nothing can be read: " + told(nodes));
            agent.emit(json::Object("sampling").add("t_ns", batch->t_ns[0]).add("columns", columns).add("scheduling", scheduling));
        }
        if (after - batch_start >= batch_ns || batch->n == batch->t_ns.size()) {
            frames.add(std::move(batch));
            batch = frames.empty();
            batch_start = after;
        }
        if (after - looked >= look_ns) {
            for (const auto& node : nodes) node->reopen_if_removed();
            agent.look();
            looked = after;
        }
        const int64_t due = std::max(k + 1, static_cast<int64_t>(static_cast<double>(before - start) / period_ns) + 1);
        skipped += due - k - 1;
        k = due;
        if (is_last || after - start >= duration_ns) break;
    }
    frames.add(std::move(batch));
    frames.close();

    const double elapsed_s = static_cast<double>(frames.last_ns - frames.first_ns) * 1e-9;
    json::Object errors;
    for (const auto& node : nodes)
        for (const Column& column : node->columns)
            if (column.failures) errors.raw(column.name, json::Object().add("count", column.failures).add("text", column.error).str());
    agent.emit(json::Object("sampled")
                   .add("n", frames.n)
                   .add("rate_asked_hz", rate_hz)
                   .add("rate_hz", elapsed_s > 0 ? static_cast<double>(frames.n - 1) / elapsed_s : NAN)
                   .add("gap_p99_s", frames.gaps.quantile_s(0.99))
                   .add("gap_max_s", frames.gaps.n ? static_cast<double>(frames.gaps.longest_ns) * 1e-9 : NAN)
                   .add("gap_limit_s", gap_limit_s)
                   .add("gaps_over_limit", frames.gaps_over_limit)
                   .add("skipped", skipped)
                   .add("read_s", frames.reads.quantile_s(0.5))
                   .add("cpu_s_per_s", (cpu_used_s() - cpu_s) / (static_cast<double>(now_ns() - start) * 1e-9))
                   .raw("errors", errors.str()));
}

}  // namespace edgewatt
