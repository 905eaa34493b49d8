# Plack's own suite for PSGI servers, against a worker without a proxy: the
# proxy's share (reading and writing HTTP) is HTTP::Message::PSGI's here. Each
# part runs bare, and under Plack's check of what a server gives and gets.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/..";
use HTTP::Message::PSGI;
use HTTP::Response;
use HTTP::Status ();
use Plack::Middleware::Lint;
use Plack::Test::Suite;
use Socket;
use Test::More;
use Serai::Driver;
use Serai::PSGI;
use Serai::Worker;

my $ran = 0;
Plack::Test::Suite->runtests(sub ($name, $test, $app) {
    $ran++;
    note $name;
    my $ask = sub ($request) {
        $request->uri->scheme('http') if !defined $request->uri->scheme;
        $request->uri->host('localhost') if !defined $request->uri->host;
        socketpair my $proxy, my $worker, AF_UNIX, SOCK_STREAM, 0 or die;
        my $pid = fork // die;
        if (!$pid) {
            close $proxy;
            my $site = { number => 1, launch => 1, max => 1, requests => 0 };
            Serai::PSGI::serve_by($site, $app);
            Serai::Worker::serve($worker, $site);
            POSIX::_exit(0);
        }
        close $worker;
        my $psgi = $request->to_psgi;
        my %env = map { $_ => $psgi->{$_} // '' } grep { !/^psgi/ } keys %$psgi;
        my $body = length $request->content ? $request->content : undef;
        $env{HTTPS} = 'on' if $psgi->{'psgi.url_scheme'} eq 'https';
        my $c = Serai::Driver::Connection->new($proxy);
        my $r = $c->request(%env, defined $body ? (BODY => $body) : ());
        $c->quit;
        waitpid $pid, 0;
        my $response = HTTP::Response->new($r->{status}, HTTP::Status::status_message($r->{status}), $r->{headers}, $r->{body});
        $response->request($request);
        return $response;
    };
    $test->($ask);
    subtest "$name, with Lint" => sub {
        $app = Plack::Middleware::Lint->wrap($app);
        $test->($ask);
    };
});
is $ran, 36, 'the whole suite';
done_testing;
