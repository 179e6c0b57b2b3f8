// When a warm-up is over: the same rule, word for word, as devices/agent/steady.py.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

namespace edgewatt {

double median(std::vector<double> values);

// Each of the last `blocks` block medians of latency lies within `tolerance` (relative) of their median, the line
// through them changes by no more than that, and no node moved by more than its own tolerance (absolute, in its unit)
// meanwhile; or, of twice as many blocks, a trend no larger than two of its own standard errors.
class Steady {
public:
    struct Node {
        std::string name;
        double tolerance;
    };

    Steady(double tolerance, int blocks, std::vector<Node> nodes);

    // One block's median latency, and what the nodes read at its end (none: no reading, which says nothing).
    void add(double latency_s, const std::vector<std::optional<double>>& readings);

    bool is_reached() const;
    std::string detail() const;  // the evidence, in words and numbers

private:
    std::vector<double> last_s() const;
    double spread() const;
    double drift() const;
    bool is_noise() const;
    std::vector<std::string> moving() const;

    double tolerance_;
    std::size_t blocks_;
    std::deque<double> all_s_;
    std::vector<Node> nodes_;
    std::vector<std::deque<double>> readings_;
};

}  // namespace edgewatt
